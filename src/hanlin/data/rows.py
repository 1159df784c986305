"""One row of somebody's preference data becomes a `Preference`, or a `BadRow` that says why not and how to mend it.

The form is read off each row by itself, so files of different forms may be mixed:

    ShareGPT ranking    conversations: [{from, value}], chosen and rejected: {from, value} or text
    conversational      prompt: [{role, content}], chosen and rejected: [{role: assistant, content}]
    plain               prompt, chosen and rejected: text
    implicit prompt     chosen and rejected: whole message lists; what they share is the prompt
    UltraFeedback       the same with a prompt text beside them, which must occur in the messages

Surprising: an empty system text means no system text; `messages` is read as the prompt only where nothing else is
(UltraFeedback repeats the chosen conversation there); a prompt must alternate user and assistant, since Gemma's
template can hold nothing else.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from hanlin.config import shown
from hanlin.types import Message, Preference

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
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
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_OTHER_PROMPTS = ("question", "instruction", "query", "input")
_SFT_ANSWERS = {"output", "response", "completion", "answer"}
_PAIR_COLUMNS = ("prompt", "conversations", "messages", "chosen", "rejected", "system", "id", "category", "fault")
COLUMNS = frozenset((*_PAIR_COLUMNS, "tools", "label", *_MEDIA, *_OTHER_PROMPTS, *_SFT_ANSWERS))
"""Every column that is looked at, be it only for a better message."""


class BadRow(Exception):
    """Why a row cannot be used: `reason` is what rows are counted by, `detail` the value at fault and what to do."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_row(row: Any, name: str) -> Preference:
    """The preference in one parsed row; `name` is its id where the row has none of its own. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object", f"{shown(row)}; expected prompt, chosen and rejected")
    columns = {key: value for key, value in row.items() if value is not None}
    refuse_more_than_text(columns)
    for side in ("chosen", "rejected"):
        if side not in columns:
            raise _without_answer(row, side)
    before_chosen, chosen = _answer(columns["chosen"], "chosen")
    before_rejected, rejected = _answer(columns["rejected"], "rejected")
    if before_chosen != before_rejected:
        raise _different_prompts(before_chosen, before_rejected)
    prompt = _shared_prompt(columns, before_chosen) if before_chosen else _own_prompt(columns)
    prompt = checked_turns(with_system_column(columns, prompt))
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise BadRow(f"{side} is empty", "every answer needs text")
    if chosen.strip() == rejected.strip():
        raise BadRow("equal answers", f"chosen and rejected are both {shown(chosen)}")
    for text in (chosen, rejected, *(message.content for message in prompt)):
        check_characters(text)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        id=label_of(columns, "id") or name,
        category=label_of(columns, "category"),
        fault=label_of(columns, "fault"),
    )


def refuse_media(columns: Mapping[str, Any]) -> None:
    """Raise BadRow for images and other media."""
    for column in _MEDIA:
        if columns.get(column):
            raise BadRow("images or other media", f"column {column!r}; only text can be trained on")


def refuse_more_than_text(columns: Mapping[str, Any]) -> None:
    """Raise BadRow for media and tools."""
    refuse_media(columns)
    tools = columns.get("tools")
    if tools and not (isinstance(tools, str) and tools.strip() in ("", "[]", "{}", "null")):
        raise BadRow("tools", f"column 'tools' = {shown(tools)}; conversations with tools are not supported")


def _without_answer(row: Mapping[str, Any], side: str) -> BadRow:
    """What to say of a row without `side`: the commonest kinds of other data are recognised by their columns."""
    if side in row:
        return BadRow(f"{side} is null", "every pair needs both answers")
    other = [str(key) for key in row if key not in COLUMNS]
    if near := difflib.get_close_matches(side, other, n=1, cutoff=0.75):
        return BadRow(f"{side} is missing", f"rename the column {near[0]!r} to {side!r}")
    columns = ", ".join(map(str, row)) or "none"
    if "chosen" in row or "rejected" in row:
        return BadRow(f"{side} is missing", f"the columns are {columns}")
    if "label" in row:
        kind = "data with one labelled answer a row (KTO)"
    elif not _SFT_ANSWERS.isdisjoint(row) or "conversations" in row or "messages" in row:
        kind = "SFT data"
    else:
        return BadRow("chosen and rejected are missing", f"the columns are {shown_columns(columns)}")
    return BadRow(
        "chosen and rejected are missing",
        f"this is {kind} (columns {shown_columns(columns)}); a preference pair has prompt, chosen and rejected",
    )


def shown_columns(columns: str) -> str:
    """A row's columns, joined, for a message."""
    return columns if len(columns) <= 120 else f"{columns[:120]} …"


def _answer(value: Any, side: str) -> tuple[tuple[Message, ...], str]:
    """The answer's text and the messages before it, if the value is a whole conversation."""
    if isinstance(value, str):
        return (), value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{side} is not text", f"{shown(value)}; expected text, a message or a list of messages")
    if not value:
        raise BadRow(f"{side} is empty", "the list holds no message")
    if isinstance(value[0], str):
        raise BadRow(f"{side} is a list of texts", f"{len(value)} of them; expected one answer")
    messages = messages_of(value, side)
    if messages[-1].role != "assistant":
        raise BadRow(f"{side} does not end with an assistant turn", f"its last turn is the {messages[-1].role}'s")
    return messages[:-1], messages[-1].content


def _different_prompts(one: tuple[Message, ...], other: tuple[Message, ...]) -> BadRow:
    reason = "chosen and rejected have different prompts"
    if len(one) != len(other):
        return BadRow(reason, f"{len(one)} messages before the chosen answer, {len(other)} before the rejected one")
    number = next(i for i, (a, b) in enumerate(zip(one, other, strict=True), start=1) if a != b)
    return BadRow(reason, f"message {number} differs; only the last answer may")


def _shared_prompt(columns: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """`prompt`, which both answers' message lists begin with; the row's own prompt has to say the same."""
    own = columns.get("prompt")
    if isinstance(own, str):
        if not any(own.strip() in message.content for message in prompt):
            raise BadRow(
                "the prompt is not in the messages", f"{shown(own)} does not occur in chosen; drop one of them"
            )
    elif own is not None and messages_of(own, "prompt") != prompt:
        raise BadRow("the prompt is not in the messages", "chosen and rejected begin with other messages than prompt")
    return prompt


def _own_prompt(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(prompt := columns.get("prompt"), str):
        return (Message("user", prompt),)
    for column in ("prompt", "conversations", "messages"):
        if column in columns:
            return messages_of(columns[column], column)
    if near := [column for column in _OTHER_PROMPTS if column in columns]:
        raise BadRow("the prompt is missing", f"rename the column {near[0]!r} to 'prompt'")
    if isinstance(chosen := columns["chosen"], str) and chosen.lstrip().startswith("Human:"):
        raise BadRow("the prompt is missing", "chosen is a transcript as text; split it into messages {role, content}")
    raise BadRow("the prompt is missing", "expected prompt (text or messages) or conversations")


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
