"""One row of somebody's instruction data becomes a `Conversation`, or a `BadRow` that says why not and how to mend it.

    ShareGPT    conversations: [{from, value}], system
    OpenAI      messages: [{role, content}]
    Alpaca      instruction, input, output; history: [[question, answer], …], system

The form is read off each row by itself. A conversation is what a preference's prompt is, turns that alternate and begin
with the user, and ends with the assistant. Rows with tools are read in `tool_rows`.
"""

from collections.abc import Mapping
from typing import Any

from hanlin.config import shown
from hanlin.data.alpaca import turns_of
from hanlin.data.messages import (
    BadRow,
    check_characters,
    checked_turns,
    label_of,
    messages_of,
    refuse_more_than_text,
    shown_columns,
    with_system_column,
)
from hanlin.data.rows import is_pair
from hanlin.data.sources import RowForm
from hanlin.data.tool_rows import has_tools, read_tool_conversation
from hanlin.types import Conversation, Message

_MESSAGES = ("conversations", "messages")
_ALPACA = ("instruction", "input", "output", "history")


def read_conversation(row: Any, name: str) -> Conversation:
    """The conversation in one parsed row; `name` is its id where the row has none of its own. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object", f"{shown(row)}; expected conversations, messages or instruction")
    columns = {key: value for key, value in row.items() if value is not None}
    if has_tools(columns):
        return read_tool_conversation(columns, name)
    refuse_more_than_text(columns)
    messages = _turns(columns)
    if not messages:
        raise BadRow("the conversation is empty", "it needs a question and an answer")
    if messages[-1].role != "assistant":
        why = "there is none" if all(message.role != "assistant" for message in messages) else "its last turn is"
        last = "" if why == "there is none" else f" the {messages[-1].role}'s"
        raise BadRow("the conversation does not end with an assistant turn", why + last)
    prompt = checked_turns(with_system_column(columns, messages[:-1]))
    answer = messages[-1].content
    if not answer.strip():
        raise BadRow("the answer is empty", "the last assistant turn needs text")
    for message in (*prompt, messages[-1]):
        check_characters(message.content)
    return Conversation((*prompt, messages[-1]), id=label_of(columns, "id") or name)


def _turns(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    for column in _MESSAGES:
        if column in columns:
            return messages_of(columns[column], column)
    if "instruction" in columns:
        return _alpaca(columns)
    found = shown_columns(", ".join(map(str, columns)) or "none")
    if is_pair(columns):
        detail = f'these are preference pairs (columns {found}); train on them with objective.kind = "orpo" or "dpo"'
    elif "text" in columns:
        detail = f'these are documents (columns {found}); train on them with objective.kind = "pretraining"'
    else:
        detail = f"the columns are {found}; expected conversations, messages, or instruction and output"
    raise BadRow("the conversation is missing", detail)


def _alpaca(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    asked = turns_of(columns)
    if "output" not in columns:
        raise BadRow("output is missing", f"the columns are {shown_columns(', '.join(map(str, columns)))}")
    if not isinstance(columns["output"], str):
        raise BadRow("output is not text", shown(columns["output"]))
    return (*asked, Message("assistant", columns["output"]))


CONVERSATIONS = RowForm(
    read=read_conversation,
    expected="conversations (messages, or instruction and output)",
    required=(frozenset(("conversations",)), frozenset(("messages",)), frozenset(("instruction", "output"))),
    columns=frozenset((*_MESSAGES, *_ALPACA, "system", "id", "tools", "images", "videos", "audios")),
)
