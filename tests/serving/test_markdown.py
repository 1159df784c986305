"""Markdown in a terminal: nothing is lost, Chinese breaks where it may, blocks are final when they are printed."""

import io
import random

import pytest
from rich.cells import cell_len
from rich.console import Console

from hanlin.serving.markdown import render, split_blocks, view

TEXT = """春眠不觉晓，
处处闻啼鸟。

这是一个**很长的**段落，有 English words 和中文：标点不应该出现在行首，“引号”不应该在行尾（括号一样）。vector<int> 在。

1. 第一项

2. 第二项

```python
def f(x):

    return x  # 一二三
```

| 名称 | 说明 |
|---|---|
| 甲 | 这一格的文字特别特别特别特别特别特别特别长，需要换行才能放下 |

最后。"""


def drawn(text: str, width: int = 40) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(render(text))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_lines_of_a_poem_stay_apart():
    assert drawn(TEXT)[:3] == ["春眠不觉晓，", "处处闻啼鸟。", ""]


@pytest.mark.parametrize("width", range(20, 60))
def test_chinese_lines_are_filled_and_break_where_they_may(width):
    paragraph = TEXT.split("\n\n")[1]
    lines = drawn(paragraph, width)
    assert all(cell_len(line) <= width for line in lines)
    assert all(cell_len(line) >= width - 12 for line in lines[:-1])
    assert not [line for line in lines if line[0] in "，：。）”" or line[-1] in "（“"]
    assert "".join(lines).replace(" ", "") == paragraph.replace("**", "").replace(" ", "")


def test_what_looks_like_html_is_text():
    assert drawn("a <b>c</b> vector<int> <tool_call>") == ["a <b>c</b> vector<int> <tool_call>"]
    assert drawn("<div>\nhi") == ["<div>", "hi"]
    assert drawn("[link](http://a.b)") == ["link (http://a.b)"]


def test_blocks_begin_after_an_empty_line_outside_code():
    blocks = split_blocks(TEXT)
    assert "".join(blocks) == TEXT
    assert [block[:4] for block in blocks] == ["春眠不觉", "这是一个", "1. 第", "2. 第", "```p", "| 名称", "最后。"]
    for end in range(len(TEXT)):  # what was finished stays finished
        *finished, _ = split_blocks(TEXT[:end])
        assert finished == blocks[: len(finished)]


def test_a_fence_is_closed_by_its_own_kind():
    assert split_blocks("````\n```\n\nx\n```\n\ny\n````\n\nz")[1:] == ["z"]
    assert split_blocks("a\n\n") == ["a\n\n"]
    assert split_blocks("- a\n\n  b") == ["- a\n\n  b"]


def test_a_streamed_answer_ends_as_the_whole_one(monkeypatch):
    """What stays on the screen does not depend on how the text came."""

    def shown(pieces: list[str]) -> str:
        console = Console(file=io.StringIO(), width=60, height=10, force_terminal=True, color_system=None)
        printed = []
        monkeypatch.setattr(console, "print", lambda *parts: printed.append(parts))
        with view(console, markdown=True) as answer:
            for piece in pieces:
                answer.push(piece)
        plain = Console(file=io.StringIO(), width=60)
        for parts in printed:
            plain.print(*parts)
        assert isinstance(plain.file, io.StringIO)
        return plain.file.getvalue()

    rng = random.Random(0)
    cuts = sorted(rng.sample(range(len(TEXT)), 60))
    pieces = [TEXT[i:j] for i, j in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    assert shown(pieces) == shown([TEXT])
    assert shown(pieces).replace("\n", "").replace(" ", "").startswith("春眠不觉晓，处处闻啼鸟。这是一个很长的段落")


def test_a_model_cannot_send_control_sequences_to_the_terminal():
    for markdown in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, color_system=None, width=40)
        with view(console, markdown=markdown) as answer:
            answer.push("a\x1b]0;title\x07b")
        assert "␛]0;title␇b" in file.getvalue()
        assert "\x1b]" not in file.getvalue()


def test_elsewhere_the_text_is_as_it_is():
    file = io.StringIO()
    with view(Console(file=file, width=10), markdown=True) as answer:
        for piece in ("**a**", " <b> [red]x[/] :smile:", " 很长很长很长很长很长很长"):
            answer.push(piece)
    assert file.getvalue() == "**a** <b> [red]x[/] :smile: 很长很长很长很长很长很长\n"
