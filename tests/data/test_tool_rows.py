"""Rows with tools: the forms that people have, what is refused, and the real files in every chat format."""

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.data.conversations import read_conversation
from hanlin.data.messages import BadRow
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.text.encode import encode_conversation, encode_prompt
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Conversation, Message, ToolCall
from tiny_text import write_directory

CALL = ToolCall("weather", {"city": "北京", "days": 2})
TOOL = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
TALK = (
    Message("system", "请用中文。"),
    Message("user", "天气？"),
    Message("assistant", "", (CALL,)),
    Message("tool", '{"天气": "晴"}'),
    Message("assistant", "晴。"),
)
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "天气？"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "北京", "days": 2}})},
        {"from": "observation", "value": '{"天气": "晴"}'},
        {"from": "gpt", "value": "晴。"},
    ],
    "system": "请用中文。",
    "tools": json.dumps([TOOL], ensure_ascii=False),
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "请用中文。"},
        {"role": "user", "content": [{"type": "text", "text": "天气？"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "北京", "days": 2}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"天气": "晴"}'},
        {"role": "assistant", "content": "晴。"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
}


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI], ids=["ShareGPT", "OpenAI"])
def test_both_forms_say_the_same(row: dict[str, Any]):
    declared = {"type": "function", "function": TOOL}
    assert read_conversation(row, "x:1") == Conversation(TALK, id="x:1", tools=(declared,))


def test_tools_that_nobody_calls_and_calls_that_nobody_declares():
    plain = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert len(read_conversation({"conversations": plain, "tools": SHAREGPT["tools"]}, "x").tools) == 1
    assert read_conversation({"conversations": plain, "tools": "[]"}, "x").tools == ()
    undeclared = read_conversation({**SHAREGPT, "tools": None}, "x")
    assert (undeclared.messages, undeclared.tools) == (TALK, ())


def test_a_result_that_is_not_text_and_a_call_after_text():
    turns = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": "查一下。", "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "content": {"天气": "晴"}},
        {"role": "tool", "content": [{"type": "text", "text": "晴"}]},
        {"role": "assistant", "content": "晴。"},
    ]
    messages = read_conversation({"messages": turns}, "x").messages
    assert messages[1:4] == (
        Message("assistant", "查一下。", (ToolCall("weather", {}),)),
        Message("tool", '{"天气": "晴"}'),
        Message("tool", "晴"),
    )


def turn(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([turn("human", "x"), turn("function_call", "{")], "a call cannot be read"),
        ([turn("human", "x"), turn("function_call", '{"name": 3}')], "a call cannot be read"),
        ([turn("human", "x"), turn("observation", "y"), turn("gpt", "z")], "a result without a call"),
        ([turn("function_call", '{"name": "f"}')], "turns do not alternate"),
        ([turn("human", "x"), turn("function_call", '{"name": "f"}'), turn("gpt", "y")], "turns do not alternate"),
        ([turn("human", "x"), turn("function_call", '{"name": "f"}'), turn("observation", "y")],
         "the conversation does not end with an assistant turn"),
        ([turn("human", "x"), turn("function_call", '{"name": "f"}'), turn("observation", "y"), turn("human", "y"),
          turn("gpt", "z")], "turns do not alternate"),
        ([turn("human", " "), turn("function_call", '{"name": "f"}')], "a message is empty"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(turns: list[dict[str, Any]], reason: str):
    with pytest.raises(BadRow) as caught:
        read_conversation({"conversations": turns}, "x")
    assert caught.value.reason == reason


def test_other_columns_are_still_looked_at():
    for change, reason in (({"tools": "{"}, "tools"), ({"images": ["x"]}, "images or other media")):
        with pytest.raises(BadRow) as caught:
            read_conversation(SHAREGPT | change, "x")
        assert caught.value.reason == reason


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_row_of_the_real_files_trains(language: str, format: ChatFormat, shared_data: Path, tmp_path: Path):
    rows = json.loads((shared_data / f"toolcall_{language}_100.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_directory(write_directory(tmp_path, format.name))
    num_calls = 0
    for number, row in enumerate(rows):
        conversation = read_conversation(row, str(number))
        tokens = encode_conversation(conversation, format, tokenizer, score="every")
        prompt = encode_prompt(conversation.messages[:-1], format, tokenizer, tools=conversation.tools)
        assert list(tokens.ids[: len(prompt)]) == prompt
        for place, message in enumerate(conversation.messages):
            if message.tool_calls:
                num_calls += 1
                before = format.text(conversation.messages[:place], True, tools=conversation.tools)
                text = format.text(conversation.messages[: place + 1], tools=conversation.tools)
                assert format.parse(text.removeprefix(before)) == message
    assert num_calls == sum(turn["from"] == "function_call" for row in rows for turn in row["conversations"])
