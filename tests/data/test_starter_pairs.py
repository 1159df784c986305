"""The shipped pairs keep what their data card promises: form, variety, true sums, real faults, like lengths."""

import ast
import json
import operator
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hanlin.data.sources import read_preferences
from hanlin.text.language import chinese_variant, emoji_in, language_of, strip_uncounted
from hanlin.text.tokenizer import Tokenizer

DATA = Path(__file__).parent.parent.parent / "data"
FILES = {"train": DATA / "starter-zh-en.jsonl", "held out": DATA / "starter-zh-en.heldout.jsonl"}
CATEGORIES = {"everyday", "roleplay", "maths", "writing", "code", "safety", "trick", "english", "identity"}
# No rule about scripts or emoji can see these. `false_premise` is one more, but the promise of 40% is kept without it.
INVISIBLE = {"wrong_sum", "unsafe", "rambling", "ignored_instruction", "false_identity"}
WHOLE_REPLY = {"english_reply", "chinese_reply"}  # one language takes about three times the characters of the other
FAULTS = INVISIBLE | WHOLE_REPLY | {"false_premise", "mixed_reply", "language_switch", "emoji"}
# The language of a rejected answer whose fault is its language; all others answer in the pair's own.
FAULTY_LANGUAGE = {"english_reply": "en", "chinese_reply": "zh", "mixed_reply": "mixed", "language_switch": "mixed"}

Row = dict[str, Any]
ROWS: dict[str, list[Row]] = {
    name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for name, path in FILES.items()
}
ALL = [row for rows in ROWS.values() for row in rows]
both_files = pytest.mark.parametrize("rows", [pytest.param(rows, id=name) for name, rows in ROWS.items()])


def chosen(row: Row) -> str:
    return row["chosen"][0]["content"]


def rejected(row: Row) -> str:
    return row["rejected"][0]["content"]


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", text, flags=re.S))


def names(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def share(rows: list[Row], of: list[Row]) -> float:
    return len(rows) / len(of)


# Form


@pytest.mark.parametrize("name", FILES)
def test_read_preferences_takes_every_row(name):
    pairs, report = read_preferences([FILES[name]])
    assert (report.rows, report.kept, report.reasons) == (len(ROWS[name]), len(ROWS[name]), {})
    assert [pair.id for pair in pairs] == names(ROWS[name])
    assert {pair.category for pair in pairs} == CATEGORIES
    assert {pair.fault for pair in pairs} == FAULTS


def test_every_row_has_the_fields_of_the_data_card_and_no_other():
    for row in ALL:
        assert set(row) - {"checks"} == {"id", "category", "language", "fault", "prompt", "chosen", "rejected"}, row[
            "id"
        ]
        assert row["category"] in CATEGORIES, row["id"]
        assert row["fault"] in FAULTS, row["id"]
        assert row["language"] in ("zh", "en"), row["id"]
        assert re.fullmatch(rf"{row['category']}-\d{{3}}", row["id"])


def test_prompts_are_turns_that_end_with_the_user_and_each_answer_is_one_turn():
    for row in ALL:
        roles = [message["role"] for message in row["prompt"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"], row["id"]
        for side in ("chosen", "rejected"):
            assert [message["role"] for message in row[side]] == ["assistant"], row["id"]
        for message in (*row["prompt"], *row["chosen"], *row["rejected"]):
            assert set(message) == {"role", "content"}, row["id"]
            assert message["content"] == message["content"].strip() != "", row["id"]
        assert chosen(row) != rejected(row), row["id"]


def test_ids_are_unique():
    assert [name for name, count in Counter(names(ALL)).items() if count > 1] == []


def test_there_are_enough_pairs():
    assert len(ROWS["train"]) >= 300
    assert len(ROWS["held out"]) >= 100
    assert min(Counter(row["category"] for row in ROWS["train"]).values()) >= 25
    assert sum(row["language"] == "zh" for row in ROWS["held out"]) >= 80


@both_files
def test_enough_faults_cannot_be_seen_by_script_or_emoji(rows):
    assert share([row for row in rows if row["fault"] in INVISIBLE], rows) >= 0.4


def test_the_data_card_gives_the_right_counts():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    table = {
        name: (int(train), int(held)) for name, train, held in re.findall(r"\| `(\w+)` \| (\d+) \| (\d+) \|", card)
    }
    for field in ("category", "fault"):
        train, held_out = (Counter(row[field] for row in ROWS[name]) for name in FILES)
        for value in train | held_out:
            assert table.pop(value) == (train[value], held_out[value]), value
    assert table == {}, "the card names what the files do not have"


# Variety


def test_no_two_prompts_share_twelve_units():
    """A unit is a Han character, a Latin word or a number; punctuation and spaces do not count."""
    owner: dict[tuple[str, ...], str] = {}
    for row in ALL:
        text = " ".join(message["content"] for message in row["prompt"])
        units = re.findall(r"[\u3400-\u9fff]|[a-z]+|\d+", text.lower())
        for start in range(len(units) - 11):
            gram = tuple(units[start : start + 12])
            assert owner.setdefault(gram, row["id"]) == row["id"], (row["id"], owner[gram], "".join(gram))


# Length does not give the answer away


@both_files
def test_most_pairs_have_answers_of_like_length(rows):
    ratios = [len(rejected(row)) / len(chosen(row)) for row in rows]
    assert sum(0.7 <= ratio <= 1.4 for ratio in ratios) / len(ratios) >= 0.8


@both_files
def test_rejected_answers_are_as_long_as_chosen_ones_on_average(rows):
    ratios = [len(rejected(row)) / len(chosen(row)) for row in rows if row["fault"] not in WHOLE_REPLY]
    assert 0.95 <= sum(ratios) / len(ratios) <= 1.05


@pytest.mark.assets
@both_files
def test_rejected_answers_have_as_many_tokens_as_chosen_ones_on_average(rows, assets):
    tokenizer = Tokenizer.from_directory(assets / "tokenizers" / "gemma3")
    ratios = [len(tokenizer.encode(rejected(row))) / len(tokenizer.encode(chosen(row))) for row in rows]
    assert 0.85 <= sum(ratios) / len(ratios) <= 1.2


# Sums. Exact: fractions, never floats.

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"(?<![\d.A-Za-z])((?:\(*{NUMBER}\)*\s*[-+×÷*/]\s*)+\(*{NUMBER}\)*)\s*=\s*({NUMBER})")


def evaluate(expression: str) -> Fraction:
    """The exact value of plain arithmetic, a × and ÷ included; anything else is a ValueError."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return Fraction(str(node.value))
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return Fraction(OPERATORS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(f"{expression!r} is more than arithmetic")

    return value(ast.parse(expression.replace("×", "*").replace("÷", "/"), mode="eval").body)


def stands_alone(number: str | int | float, text: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(str(number))}(?!\d|\.\d)", text) is not None


@pytest.mark.parametrize("expression", ["__import__('os')", "x + 1", "2 ** 9", "'3'", "True + 1", "-1"])
def test_the_evaluator_refuses_what_is_no_plain_arithmetic(expression):
    with pytest.raises(ValueError, match="more than arithmetic"):
        evaluate(expression)


def test_the_evaluator_is_exact():
    assert evaluate("(94-35×2)÷2") == 12
    assert evaluate("0.1+0.2") == Fraction(3, 10)


def test_every_equation_in_a_chosen_answer_is_true():
    checked = 0
    for row in ALL:
        text = without_code(chosen(row))
        equations = EQUATION.findall(text)
        for expression, result in equations:
            assert evaluate(expression) == Fraction(result), f"{row['id']}: {expression}={result}"
        assert len(equations) == text.count("="), f"{row['id']}: an equation that this test cannot read"
        checked += len(equations)
    assert checked > 100


def test_every_sum_has_checks_whose_values_the_chosen_answer_gives():
    for row in ALL:
        assert row.get("checks") or (row["category"] != "maths" and row["fault"] != "wrong_sum"), row["id"]
        for check in row.get("checks", []):
            assert set(check) == {"expression", "value"}, row["id"]
            assert evaluate(check["expression"]) == Fraction(str(check["value"])), (row["id"], check)
            assert stands_alone(check["value"], chosen(row)), (row["id"], check)


def test_a_wrong_sum_does_not_end_in_the_right_value():
    for row in ALL:
        if row["fault"] == "wrong_sum":
            last_line = rejected(row).splitlines()[-1]
            assert not stands_alone(row["checks"][-1]["value"], last_line), row["id"]


# Languages and emoji


def test_chosen_answers_are_in_the_language_of_the_pair():
    for row in ALL:
        language = language_of(chosen(row))
        if language == "none":  # nothing but code was asked for: its comments are in the language
            assert row["category"] == "code", row["id"]
            language = language_of("\n".join(re.findall(r"(?:--|#|//) *(.+)", chosen(row))))
        assert language == row["language"], row["id"]


def test_rejected_answers_are_in_another_language_only_where_that_is_the_fault():
    for row in ALL:
        assert language_of(rejected(row)) == FAULTY_LANGUAGE.get(row["fault"], row["language"]), row["id"]


def test_chinese_answers_are_simplified_with_chinese_punctuation():
    for row in ALL:
        if row["language"] == "zh":
            assert [char for char in chosen(row) if chinese_variant(char) == "Hant"] == [], row["id"]
            assert re.findall(r"[\u4e00-\u9fff] ?[,;?!]", strip_uncounted(chosen(row), quotes=False)) == [], row["id"]


def test_pictographs_are_in_the_emoji_fault_alone():
    for row in ALL:
        assert emoji_in(chosen(row)) == [], row["id"]
        assert all(emoji_in(message["content"]) == [] for message in row["prompt"]), row["id"]
        assert (len(emoji_in(rejected(row))) >= 2) == (row["fault"] == "emoji"), row["id"]
