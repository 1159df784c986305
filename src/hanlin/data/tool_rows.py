"""One row with tools becomes a `Conversation`, or a `BadRow` that says why not and how to mend it.

    ShareGPT    conversations: [{from, value}] with the roles function_call and observation, tools: JSON text
    OpenAI      messages: [{role, content, tool_calls}] with the role tool, tools: [{type, function}]

A call is the assistant's turn and its result stands where a user's turn would. Ids of calls are left out: no chat
format writes them, and results stand in the order of their calls.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hanlin.config import shown
from hanlin.data.messages import BadRow, check_characters, label_of, message_of, refuse_media, with_system_column
from hanlin.errors import TemplateError
from hanlin.text.tools import read_calls, read_declarations
from hanlin.types import Conversation, Message

_CALLS = ("function_call", "tool_call")
_RESULTS = ("observation", "tool", "function", "function_response", "tool_response", "ipython")
_MESSAGES = ("conversations", "messages")


def has_tools(columns: Mapping[str, Any]) -> bool:
    """Whether the row declares tools, or a turn of it calls one or is a result."""
    tools = columns.get("tools")
    if tools and not (isinstance(tools, str) and tools.strip() in ("", "[]", "{}", "null")):
        return True
    items = next((columns[column] for column in _MESSAGES if column in columns), None)
    return isinstance(items, list) and any(
        isinstance(item, dict) and (_role(item) in (*_CALLS, *_RESULTS) or _calls_field(item)) for item in items
    )


def read_tool_conversation(columns: Mapping[str, Any], name: str) -> Conversation:
    """The conversation in a row of which `has_tools` is true. Raises BadRow."""
    refuse_media(columns)
    column = next((column for column in _MESSAGES if column in columns), None)
    if column is None or not isinstance(columns[column], list):
        raise BadRow("the conversation is missing", "a row with tools has conversations or messages, a list of turns")
    try:
        tools = read_declarations(columns.get("tools"))
    except TemplateError as error:
        raise BadRow("tools", str(error)) from None
    items = enumerate(columns[column])
    messages = with_system_column(columns, tuple(_turn(item, f"{column}[{index}]") for index, item in items))
    _check_turns(messages)
    return Conversation(messages, id=label_of(columns, "id") or name, tools=tools)


def _turn(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        return message_of(item, where)
    role, content = _role(item), item["content"] if item.get("content") is not None else item.get("value")
    try:
        if role in _CALLS:
            return Message("assistant", "", read_calls(content))
        if role in _RESULTS:
            return Message("tool", content if isinstance(content, str) else _as_text(content, where))
        if calls := _calls_field(item):
            plain = {key: value for key, value in item.items() if key not in ("tool_calls", "function_call")}
            return replace(message_of({**plain, "content": content or ""}, where), tool_calls=read_calls(calls))
    except TemplateError as error:
        raise BadRow("a call cannot be read", f"{where}: {error}") from None
    return message_of(item, where)


def _role(item: Mapping[str, Any]) -> Any:
    return item["role"] if item.get("role") is not None else item.get("from")


def _calls_field(item: Mapping[str, Any]) -> Any:
    return item.get("tool_calls") or item.get("function_call")


def _as_text(content: Any, where: str) -> str:
    """A result as text: parts {type: text, text} joined, any other value as JSON."""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        return message_of({"role": "user", "content": content}, where).content
    return json.dumps(content, ensure_ascii=False)


def _check_turns(messages: tuple[Message, ...]) -> None:
    """The user's or tools' turns alternate with the assistant's, whose is the last, and all have something to say."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns or turns[-1].role != "assistant":
        last = f"its last turn is the {turns[-1].role}'s" if turns else "there is none"
        raise BadRow("the conversation does not end with an assistant turn", last)
    before = Message("assistant", "")
    for number, message in enumerate(turns, 1):
        check_characters(message.content)
        if message.role == "tool":
            if before.role != "tool" and not before.tool_calls:
                raise BadRow("a result without a call", f"turn {number} follows no call: {shown(message.content)}")
        elif message.role == "system":
            raise BadRow("a system message is not the first", "a conversation has one system text, at its start")
        elif (message.role == "assistant") == (before.role == "assistant"):
            detail = f"turn {number} is the {message.role}'s; join turns of one speaker, begin with the user"
            raise BadRow("turns do not alternate", detail)
        elif message.role == "user" and before.role == "tool":
            raise BadRow("turns do not alternate", f"turn {number} is the user's, and nobody answered the tool's")
        elif not message.content.strip() and not message.tool_calls:
            raise BadRow("a message is empty", f"{message.role} turn {number}")
        before = message
