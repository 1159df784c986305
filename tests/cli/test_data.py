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
    answer = command("data", "convert", pairs, "--to", "alpaca", "-o", tmp_path / "made.jsonl")
    assert answer.status == 2
    assert "not for preference pairs" in answer.err


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
