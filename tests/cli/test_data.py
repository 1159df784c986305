"""`hanlin data` as people call it."""

import json
from pathlib import Path

import pytest

PAIRS = [
    {
        "prompt": f"请介绍第{number}种水果的特点。",
        "chosen": f"第{number}种水果甘甜多汁。" * (number + 1),
        "rejected": "不知道。",
    }
    for number in range(20)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), encoding="utf-8")
    return file


def test_stats(command, pairs):
    answer = command("data", "stats", pairs)
    assert answer.status == 0, answer.err
    assert "chosen" in answer.out
    assert "zh-Hans" in answer.out
    told = json.loads(command("data", "stats", pairs, "--json", "--near").out)
    assert told["rows"] == told["sides"]["chosen"]["texts"] == 20
    assert command("data", "stats", pairs.parent / "none.jsonl").status == 2


def test_sample(command, pairs):
    answer = command("data", "sample", pairs, "-n", 3, "--seed", 4)
    assert answer.status == 0, answer.err
    assert answer.out.count("chosen") == 3
    assert answer.out == command("data", "sample", pairs, "-n", 3, "--seed", 4).out
    rows = [json.loads(line) for line in command("data", "sample", pairs, "-n", 3, "--json").out.splitlines()]
    assert all(row in PAIRS for row in rows)


def test_convert(command, pairs, tmp_path):
    answer = command("data", "convert", pairs, "--to", "sharegpt", "-o", tmp_path / "made.json")
    assert answer.status == 0, answer.err
    assert "20 written" in answer.out
    assert json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))[0]["chosen"]["from"] == "gpt"
    answer = command("data", "convert", pairs, "--to", "chatml", "-o", tmp_path / "made.jsonl")
    assert answer.status == 2
    assert "sharegpt" in answer.err
    for name in ("made.jsonl.gz", "made.jsonl.zst"):
        answer = command("data", "convert", pairs, "--to", "alpaca", "-o", tmp_path / name)
        assert answer.status == 0, answer.err
        answer = command("data", "convert", tmp_path / name, "--to", "openai", "-o", tmp_path / f"openai-{name}")
        assert "20 written" in answer.out, answer.err
    (tmp_path / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    answer = command("data", "convert", tmp_path / "asked.jsonl", "--to", "trl", "-o", tmp_path / "more.jsonl")
    assert answer.status == 2
    assert "does not end with an assistant turn" in answer.err


def test_split(command, pairs, tmp_path):
    answer = command("data", "split", pairs, "-o", tmp_path / "parts", "--held-out", 4)
    assert answer.status == 0, answer.err
    assert len((tmp_path / "parts" / "held-out.jsonl").read_text(encoding="utf-8").splitlines()) <= 4
    assert command("data", "split", pairs, "-o", tmp_path / "parts", "--held-out", 4).status == 2


def test_pairs(command, tmp_path):
    file = tmp_path / "votes.jsonl"
    votes = [("甲", "up"), ("乙", "down"), ("甲", "up")]
    file.write_text("".join(json.dumps({"prompt": "问", "answer": one, "thumbs": vote}) + "\n" for one, vote in votes))
    answer = command("data", "pairs", file, "-o", tmp_path / "made.jsonl")
    assert answer.status == 0, answer.err
    assert "1 pairs" in answer.out
    answer = command("data", "pairs", file, "-o", tmp_path / "more.jsonl", "--min-votes", 2)
    assert answer.status == 2
    assert "too few votes" in answer.err
    assert command("data", "pairs", file, "-o", tmp_path / "more.jsonl", "--ties", "coin").status == 2


def test_ctrl_c_is_one_line(command, pairs, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hanlin.curation.survey.survey", interrupted)
    answer = command("data", "stats", pairs)
    assert (answer.status, answer.out) == (130, "")
    assert answer.err.strip() == "error 错误: interrupted 已中断"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wide.jsonl", '{"prompt": "q"}\n'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (
            "cut.json",
            b'[{"prompt": "q", "chosen": "a", "rejected": "b"},\n {"pro',
            "line 2, column 3; was a copy cut off?",
        ),
        ("gbk.json", '[{"prompt": "天"}]'.encode("gbk"), "not UTF-8, byte 0xcc at offset 13"),
        ("deep.json", b"[" * 100_000, "nested too deep"),
        ("magic.parquet", b"PAR1" + b"\xff" * 200 + b"PAR1", "not a Parquet file that can be read"),
        ("empty.json", b"", "empty.json: there are no rows"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: there are no rows"),
    ],
)
@pytest.mark.parametrize("tool", ["stats", "sample", "convert", "split", "pairs"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(command, tmp_path, tool, name, content, said):
    (tmp_path / name).write_bytes(content)
    output = {"convert": "made.jsonl", "split": "parts", "pairs": "made.jsonl"}.get(tool)
    answer = command("data", tool, tmp_path / name, *(["-o", tmp_path / output] if output else []))
    assert answer.status == 2
    assert answer.out == ""
    (line,) = answer.err.strip().splitlines()
    assert name in line
    assert said in line
    assert not (tmp_path / "made.jsonl").exists()
