"""Rows, their table and their JSON."""

import io
import json

import pytest
from rich.console import Console

from hanlin.evaluation.language import METRICS, Reply
from hanlin.evaluation.prompts import Prompt
from hanlin.evaluation.report import Row, language_rows, mean_row, rate_row, table, to_dict
from hanlin.types import Message


def replies(text: str, *, ended: bool) -> list[Reply]:
    prompts = [Prompt(id=str(n), messages=(Message("user", "你好"),), language="zh") for n in range(20)]
    return [Reply(prompt=prompt, text=text, ended=ended) for prompt in prompts]


def drawn(rows: list[Row], *, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table(rows, title="proof"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_of_two_models_say_what_changed() -> None:
    rows = language_rows(replies("Hello there, my friend 😀", ended=False), replies("你好。", ended=True))
    changes = {row.key: row.change for row in rows}
    assert changes == {
        "zh.pass": "better",
        "zh.wrong": "better",
        "zh.mixed": "unclear",
        "zh.emoji": "better",
        "zh.ended": "better",
        "zh.looping": "unclear",
        "zh.characters": "changed",
    }
    assert all(row.english.startswith("Chinese prompts: ") and row.chinese.startswith("中文提问：") for row in rows)


def test_a_change_for_the_worse_is_called_so() -> None:
    assert rate_row("x", ("x", "某"), before=[True] * 30, after=[False] * 30, better="higher").change == "worse"
    assert (
        mean_row("nll", ("NLL", "损失"), before=[1.0, 1.1, 0.9], after=[3.0, 3.2, 2.9], better="lower").change
        == "worse"
    )


def test_rows_of_one_model_have_no_difference() -> None:
    rows = language_rows(replies("你好。", ended=True))
    assert len(rows) == len(METRICS)
    assert all(row.after is None and row.difference is None and row.change is None for row in rows)
    assert "difference" not in drawn(rows)


def test_table_shows_every_number_with_its_interval_in_both_languages() -> None:
    rows = [
        rate_row(
            "accuracy", ("reward accuracy", "奖励准确率"), before=[True, False] * 40, after=[True] * 80, better="higher"
        ),
        mean_row(
            "nll", ("chosen NLL", "选中回答的损失"), before=[4.0, 5.0, 4.5], after=[3.0, 3.9, 3.3], better="lower"
        ),
    ]
    text = drawn(rows)
    for expected in (
        "reward accuracy",
        "奖励准确率",
        "50.0%",
        "100.0%",
        "+50.0 pp",
        "[39.3, 60.7]",
        "better 更好",
        "4.500",
        "-1.100",
    ):
        assert expected in text


def test_names_are_whole_in_a_narrow_terminal() -> None:
    chinese = "奖励准确率（平均对数概率）"
    row = rate_row("accuracy", ("reward accuracy", chinese), before=[True], after=[False], better="higher")
    assert set(chinese) <= set(drawn([row], width=80))


def test_json_is_plain_and_keeps_the_keys() -> None:
    rows = [*language_rows(replies("你好。", ended=True)), mean_row("one", ("one", "一"), before=[1.0], after=[2.0])]
    found = json.loads(json.dumps(to_dict(rows), allow_nan=False))
    assert found["zh.pass"]["before"] == {
        "value": 1.0,
        "low": pytest.approx(0.8389, abs=1e-4),
        "high": 1.0,
        "count": 20,
    }
    assert found["one"]["difference"] == {"value": 1.0, "low": None, "high": None, "count": 1}
    assert found["one"]["change"] == "unclear"
