"""Instruction data in the forms people have; every kind of bad row is named, counted, and an error or skipped."""

import json
from pathlib import Path
from typing import Any

import polars
import pytest

from hanlin.data.conversations import CONVERSATIONS, read_conversation
from hanlin.data.messages import BadRow
from hanlin.data.prepare import DataConfig, prepare_conversations
from hanlin.data.sources import read_files
from hanlin.errors import ConfigError, DataError
from hanlin.text.chat import FORMATS
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Message
from tiny_run import write_rows
from tiny_text import write_directory

SAID = (Message("system", "Be brief."), Message("user", "你好"), Message("assistant", "hello"))
SAME = {
    "sharegpt": {
        "conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "hello"}],
        "system": "Be brief.",
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        ]
    },
    "alpaca": {"instruction": "你好", "input": "", "output": "hello", "system": "Be brief."},
    "alpaca without input": {"instruction": "你好", "output": "hello", "history": [], "system": "Be brief."},
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_conversation(form: str):
    conversation = read_conversation(SAME[form], "file.jsonl:3")
    assert (conversation.messages, conversation.id) == (SAID, "file.jsonl:3")
    assert read_conversation({**SAME[form], "id": 17}, "x").id == "17"


def test_alpaca_joins_instruction_and_input_and_tells_the_history():
    row = {"instruction": "Translate.", "input": "你好", "output": "hello", "history": [["a", "b"], ["c", "d"]]}
    said = [(message.role, message.content) for message in read_conversation(row, "x").messages]
    assert said == [
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
        ("user", "Translate.\n你好"), ("assistant", "hello"),
    ]  # fmt: skip


def turns(*roles: str, content: str = "x") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ("text", "the row is not an object", "expected conversations"),
        (turns("user", "assistant", "user"), "the conversation does not end with an assistant turn", "the user's"),
        (turns("user"), "the conversation does not end with an assistant turn", "there is none"),
        (turns(), "the conversation is empty", "question and an answer"),
        (turns("assistant"), "the prompt is empty", "user turn"),
        (turns("user", "user", "assistant"), "turns do not alternate", "turn 2"),
        (turns("user", "assistant", "user", "assistant", "assistant"), "the prompt does not end", "assistant's"),
        (turns("user", "assistant", content=" "), "the prompt is empty", "user turn"),
        (turns("user", "robot"), "unknown role", "'robot'"),
        ({"instruction": "hi", "output": " "}, "the answer is empty", "needs text"),
        ({"instruction": "", "output": "x"}, "the prompt is empty", "user turn 1"),
        ({"instruction": "hi"}, "output is missing", "instruction"),
        ({"instruction": 3, "output": "x"}, "instruction is not text", "3"),
        ({"instruction": "hi", "output": "x", "history": [["a"]]}, "history is not rounds", "history[0]"),
        ({"instruction": "hi", "output": "a\0b"}, "a NUL character", "damaged"),
        ({"instruction": "hi", "output": "x", "images": ["a.png"]}, "images or other media", "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "the conversation is missing", "preference pairs"),
        ({"text": "a"}, "the conversation is missing", "pretraining"),
        ({"question": "a"}, "the conversation is missing", "question"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: Any, reason: str, detail: str):
    with pytest.raises(BadRow) as caught:
        read_conversation(row, "x")
    assert caught.value.reason.startswith(reason)
    assert detail in str(caught.value)


def test_files_of_all_kinds_are_read_and_bad_rows_named_and_counted(tmp_path: Path):
    good = [SAME["alpaca"], SAME["sharegpt"]]
    (tmp_path / "a.json").write_text(json.dumps(good, ensure_ascii=False))
    write_rows(tmp_path / "b.jsonl", [*good, turns("user"), {"instruction": "hi", "output": ""}, turns("user")])
    polars.DataFrame({"instruction": ["hi"] * 3, "output": ["x"] * 3, "odd": [1.0] * 3}).write_parquet(
        tmp_path / "c.parquet"
    )
    kept, report = read_files([tmp_path], CONVERSATIONS, on_bad_row="skip")
    assert [one.id for one in kept][:4] == ["a.json:1", "a.json:2", "b.jsonl:1", "b.jsonl:2"]
    assert (report.rows, report.kept, report.skipped) == (10, 7, 3)
    assert report.reasons["the conversation does not end with an assistant turn"] == 2
    assert "b.jsonl, line 3" in report.examples["the conversation does not end with an assistant turn"][0]
    with pytest.raises(DataError, match=r"b\.jsonl, line 3: .*2 more bad rows of 5"):
        read_files([tmp_path], CONVERSATIONS)


def test_a_file_of_something_else_names_what_was_expected(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="expected conversations"):
        read_files([tmp_path / "a.jsonl"], CONVERSATIONS)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.open(write_directory(tmp_path / "tokenizer", "smollm2"))


def prepare(path: Path, tokenizer: Tokenizer, *, score: Any = "last", **fields: Any):
    config = DataConfig(train=(str(path),), **fields)
    return prepare_conversations(config, FORMATS["smollm2"], tokenizer, score=score)


def long_rows(tmp_path: Path) -> Path:
    history = [["x q " * 20, "x"], ["y q " * 20, "y"]]
    rows = [{"instruction": "hi", "output": "z", "history": history}, {"instruction": "hi", "output": "x"}]
    return write_rows(tmp_path / "long.jsonl", rows)


def test_long_conversations_are_dropped_or_lose_their_oldest_rounds(tmp_path: Path, tokenizer: Tokenizer):
    path = long_rows(tmp_path)
    whole = prepare(path, tokenizer).train[0]
    limit = len(whole.ids) - 10
    dropped = prepare(path, tokenizer, max_length=limit)
    assert len(dropped.train) == 1
    assert "2 conversations: 1 kept, 1 dropped" in dropped.lengths[0].lines()[0]
    shortened = prepare(path, tokenizer, max_length=limit, on_long="truncate_prompt")
    short = shortened.train[0]
    assert len(short.ids) <= limit
    assert short.ids[short.scored.index(True) :] == whole.ids[whole.scored.index(True) :]
    assert tokenizer.decode(short.ids).count("y q") == 20
    assert "x q" not in tokenizer.decode(short.ids)
    assert shortened.lengths[0].shortened == 1
    with pytest.raises(DataError, match=r"conversation long\.jsonl:1 has"):
        prepare(path, tokenizer, max_length=limit, on_long="error")
    with pytest.raises(ConfigError, match="scored"):
        prepare(path, tokenizer, score="every", max_length=limit, on_long="truncate_prompt")


def test_held_out_conversations_are_apart_and_the_same_every_time(tmp_path: Path, tokenizer: Tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": f"{i}", "output": f"{i}", "id": i} for i in range(20)])
    one, other = (prepare(path, tokenizer, held_out_pairs=5) for _ in range(2))
    assert one == other
    assert {text.id for text in one.train} | {text.id for text in one.held_out} == {str(i) for i in range(20)}
    assert (len(one.train), len(one.held_out)) == (15, 5)
    assert one.fingerprint != prepare(path, tokenizer, held_out_pairs=4).fingerprint


@pytest.mark.assets
def test_the_shared_instruction_data_is_read_whole(shared_data: Path, assets: Path):
    tokenizer = Tokenizer.open(assets / "smollm2-135m-instruct.gguf")
    files = tuple(
        str(shared_data / name) for name in ("alpaca_zh_500.json", "alpaca_en_500.json", "identity_demo.json")
    )
    data = prepare_conversations(DataConfig(train=files), FORMATS["smollm2"], tokenizer, score="every")
    assert (data.rows[0].rows, data.rows[0].skipped, len(data.train)) == (1091, 0, 1091)
    for text in data.train:
        assert text.scored[-2:] == (True, False)  # the stop, and the line end after it
        assert tokenizer.piece(text.ids[-2]) == "<|im_end|>"
