"""A row in another form says what it said before, or says why it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.data.conversations import read_conversation
from hanlin.data.forms import CONVERSATION_FORMS, FORMS, PAIR_FORMS, convert_row
from hanlin.data.messages import BadRow
from hanlin.data.rows import read_row
from hanlin.text.tools import function
from hanlin.types import Conversation, Message, Preference, ToolCall

REAL = Path("/work/shared/data")
TURNS = (
    Message("system", "你是翰林。"),
    Message("user", "你好"),
    Message("assistant", "您好！"),
    Message("user", "天？"),
)
PAIR = Preference(TURNS, "蓝。", "blue", id="sky-1", category="everyday", fault="english")
WEATHER = function("weather", "Looks outside.", city={"type": "string"})
CALLS = Conversation(
    (
        Message("user", "京沪天气？"),
        Message("assistant", "", (ToolCall("weather", {"city": "北京"}), ToolCall("weather", {"city": "上海"}))),
        Message("tool", "晴"),
        Message("tool", "雨"),
        Message("assistant", "北京晴，上海雨。"),
    ),
    id="w",
    tools=(WEATHER,),
)
PLAIN = Conversation((*TURNS, Message("assistant", "蓝。")), id="c-1")


def row_of(pair: Preference, form: Any) -> dict[str, Any]:
    return {**PAIR_FORMS[form](pair), "id": pair.id, "category": pair.category, "fault": pair.fault}


@pytest.mark.parametrize("form", [form for form in PAIR_FORMS if form != "trl-plain"])
@pytest.mark.parametrize("other", [form for form in PAIR_FORMS if form != "trl-plain"])
def test_a_pair_goes_from_any_form_to_any_other(form: Any, other: Any) -> None:
    made = convert_row(row_of(PAIR, form), "x:1", other)
    assert read_row(made.row, "x:1") == PAIR
    assert made.lost == ()
    assert convert_row(made.row, "x:1", form).row == row_of(PAIR, form)


@pytest.mark.parametrize("form", CONVERSATION_FORMS)
@pytest.mark.parametrize("other", CONVERSATION_FORMS)
def test_a_conversation_goes_from_any_form_to_any_other(form: Any, other: Any) -> None:
    made = convert_row({**CONVERSATION_FORMS[form](PLAIN), "id": "c-1"}, "x:1", other)
    assert read_conversation(made.row, "x:1") == PLAIN


@pytest.mark.parametrize("form", ["hanlin", "openai", "sharegpt"])
def test_calls_and_results_come_along(form: Any) -> None:
    made = convert_row({**CONVERSATION_FORMS["openai"](CALLS), "id": "w"}, "x:1", form).row
    assert read_conversation(made, "x:1") == CALLS
    if form != "sharegpt":
        assert [turn.get("tool_call_id") for turn in made["messages"]] == [None, None, "call_1", "call_2", None]


def test_what_a_form_cannot_hold_is_refused() -> None:
    with pytest.raises(BadRow, match="tools"):
        convert_row(CONVERSATION_FORMS["openai"](CALLS), "x:1", "alpaca")
    with pytest.raises(BadRow, match="more than one turn"):
        convert_row(row_of(PAIR, "trl"), "x:1", "trl-plain")
    with pytest.raises(BadRow, match="not for conversations"):
        convert_row(CONVERSATION_FORMS["openai"](PLAIN), "x:1", "trl")
    said = Message("assistant", "我看看。", (ToolCall("weather", {}),))
    beside = Conversation((CALLS.messages[0], said, *CALLS.messages[2:3], CALLS.messages[-1]), tools=CALLS.tools)
    with pytest.raises(BadRow, match="text beside a call"):
        convert_row(CONVERSATION_FORMS["openai"](beside), "x:1", "sharegpt")


def test_columns_that_no_form_knows_come_along_and_what_does_not_is_named() -> None:
    row = {**row_of(PAIR, "trl"), "score": 4, "conversations": "a note", "empty": None}
    row["prompt"] = [{**turn, "weight": 0} for turn in row["prompt"]]
    made = convert_row(row, "x:1", "sharegpt")
    assert made.row["score"] == 4
    assert "empty" not in made.row
    assert made.lost == ("conversations", "message.weight")


def test_a_row_without_an_id_gets_one_in_our_own_form_only() -> None:
    row = {"prompt": "你好", "chosen": "您好", "rejected": "hi"}
    assert convert_row(row, "x:7", "hanlin").row["id"] == "x:7"
    assert "id" not in convert_row(row, "x:7", "sharegpt").row
    assert convert_row(row, "x:7", "trl-plain").row == row


def test_every_form_is_listed_once() -> None:
    assert len(set(FORMS)) == len(FORMS)
    assert set(FORMS) == {*PAIR_FORMS, *CONVERSATION_FORMS}


@pytest.mark.skipif(not REAL.exists(), reason="the shared data are not here")
@pytest.mark.parametrize("name", ["dpo_zh_200", "dpo_en_200", "toolcall_zh_100", "toolcall_en_100", "alpaca_zh_500"])
def test_real_rows_survive_every_form(name: str) -> None:
    rows = json.loads((REAL / f"{name}.json").read_text(encoding="utf-8"))
    is_pair = name.startswith("dpo")
    read: Any = read_row if is_pair else read_conversation
    for form in ("trl", "sharegpt") if is_pair else ("openai", "sharegpt"):
        kept = 0
        for number, row in enumerate(rows):
            try:
                noun = read(row, f"x:{number}")
            except BadRow:
                continue
            made = convert_row(row, f"x:{number}", form)
            assert read(made.row, f"x:{number}") == noun
            kept += 1
        assert kept >= 0.9 * len(rows)
