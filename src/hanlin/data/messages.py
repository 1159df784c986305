"""The turns of somebody's chat data become `Message`s, or a `BadRow` that says why not and how to mend it.

Surprising: an empty system text means no system text; a prompt must alternate user and assistant, since Gemma's
template can hold nothing else; OpenAI's `developer` is the system.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hanlin.config import shown
from hanlin.types import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_TOOL_ROLES = {
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "ipython",
    "tool_call",
    "tool_response",
}
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


class BadRow(Exception):
    """Why a row cannot be used: `reason` is what rows are counted by, `detail` the value at fault and what to do."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def refuse_media(columns: Mapping[str, Any]) -> None:
    """Raise BadRow for images and other media."""
    for column in MEDIA:
        if columns.get(column):
            raise BadRow("images or other media", f"column {column!r}; only text can be trained on")


def refuse_more_than_text(columns: Mapping[str, Any]) -> None:
    """Raise BadRow for media and tools."""
    refuse_media(columns)
    tools = columns.get("tools")
    if tools and not (isinstance(tools, str) and tools.strip() in ("", "[]", "{}", "null")):
        raise BadRow("tools", f"column 'tools' = {shown(tools)}; conversations with tools are not supported")


def shown_columns(columns: str) -> str:
    """A row's columns, joined, for a message."""
    return columns if len(columns) <= 120 else f"{columns[:120]} …"


def messages_of(value: Any, column: str) -> tuple[Message, ...]:
    """The turns in a column's list. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow(f"{column} is not a list of messages", f"{shown(value)}; expected [{{role, content}}, …]")
    return tuple(message_of(item, f"{column}[{index}]") for index, item in enumerate(value))


def message_of(item: Any, where: str) -> Message:
    """One turn from {role, content} or {from, value}; `where` counts from 0 as the data's own indices do."""
    if not isinstance(item, dict):
        raise BadRow("a message is not an object", f"{where} is {shown(item)}; expected {{role, content}}")
    role = item["role"] if item.get("role") is not None else item.get("from")
    content = item["content"] if item.get("content") is not None else item.get("value")
    if not isinstance(role, str):
        raise BadRow("a message has no role", f"{where} has the fields {shown_columns(', '.join(map(str, item)))}")
    if role not in _ROLES:
        if role in _TOOL_ROLES:
            raise BadRow("tools", f"{where} is a {role!r} turn; conversations with tools are not supported")
        raise BadRow("unknown role", f"{role!r} in {where}; known are {', '.join(_ROLES)}")
    if item.get("tool_calls") or item.get("function_call"):
        raise BadRow("tools", f"{where} calls a tool; conversations with tools are not supported")
    if content is None:
        raise BadRow("a message has no text", f"{where} has neither content nor value")
    return Message(_ROLES[role], content if isinstance(content, str) else "".join(_parts(content, where)))


def _parts(content: Any, where: str) -> Iterable[str]:
    """The texts of a content list [{type: text, text}]."""
    if not isinstance(content, list):
        raise BadRow("a message is not text", f"{where} holds {shown(content)}")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            reason = "a message is not text" if kind in (None, "text") else "images or other media"
            raise BadRow(reason, f"{where} has a part {shown(kind)}; only text can be trained on")
        yield part["text"]


def with_system_column(columns: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with the system column in front; empty system texts are none."""
    if prompt and prompt[0].role == "system" and not prompt[0].content.strip():
        prompt = prompt[1:]
    system = columns.get("system", "")
    if not isinstance(system, str):
        raise BadRow("system is not text", shown(system))
    if not system.strip():
        return prompt
    if prompt and prompt[0].role == "system":
        if prompt[0].content.strip() == system.strip():
            return prompt
        raise BadRow("two system texts", "one in the column 'system', another in the messages")
    return (Message("system", system), *prompt)


def checked_turns(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt, if it alternates from user to user and every turn has text. Raises BadRow."""
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    if not turns:
        raise BadRow("the prompt is empty", "it needs at least one user turn")
    if turns[-1].role == "assistant":
        raise BadRow("the prompt does not end with a user turn", "its last turn is the assistant's")
    if any(message.role == "system" for message in turns):
        raise BadRow("a system message is not the first", "a conversation has one system text, at its start")
    for index, message in enumerate(turns):
        if message.role != ("user", "assistant")[index % 2]:
            detail = f"turn {index + 1} is the {message.role}'s; join turns of one speaker, begin with the user"
            raise BadRow("turns do not alternate", detail)
        if not message.content.strip():
            raise BadRow(
                "the prompt is empty" if len(turns) == 1 else "a message is empty", f"{message.role} turn {index + 1}"
            )
    return prompt


def check_characters(text: str) -> None:
    """Raise BadRow for text that is damaged."""
    if "\0" in text:
        raise BadRow("a NUL character", f"in {shown(text)}; the text is damaged")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x} at character {error.start}"
        raise BadRow(
            "half a character", f"{half} is one half of a surrogate pair; the text was cut or escaped wrongly"
        ) from None


def label_of(columns: Mapping[str, Any], column: str) -> str:
    """A column that names something, as text; "" where it is missing. Raises BadRow."""
    value = columns.get(column, "")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{column} is not text", shown(value))
    label = str(value)
    check_characters(label)
    return label
