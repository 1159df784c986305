"""A row of any form as texts with sides, and the row again with some of them changed.

A row that no rule changes is written byte for byte as it was read. A changed one keeps its form and all its columns:
only the texts that changed are exchanged, wherever the row repeats them. What a tool is given and what it returns has a
side of its own: it is data, and neither a question nor an answer.
"""

from collections.abc import Iterator
from typing import Any, Literal

from hanlin.curation.shards import Row
from hanlin.data.alpaca import question_of
from hanlin.data.messages import BadRow, check_characters
from hanlin.data.rows import OPENAI, is_feedback, is_pair, read_row
from hanlin.data.transcripts import is_transcript, with_turns

Kind = Literal["pair", "conversation", "document"]
Slot = tuple[str, str]  # side, text
ASKED = ("prompt", "user")
"""The sides that people write."""
ANSWERED = ("chosen", "assistant")
"""The answers that are learned from."""
_ASSISTANT = ("assistant", "gpt", "model", "bot")
_TOOL = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")
_TOOL += ("tool_response",)


def read_slots(row: Any, name: str) -> tuple[Kind, list[Slot], str]:
    """What kind of row it is, its texts in order, and its id. Raises BadRow for a row that holds none of the kinds."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object")
    label = row.get("id") if isinstance(row.get("id"), str | int) else name
    if is_pair(row):
        pair = read_row(row, name)
        prompt = [("prompt", message.content) for message in pair.prompt]
        return "pair", [*prompt, ("chosen", pair.chosen), ("rejected", pair.rejected)], pair.id
    kind, slots = _of_one_answer(row)
    for _, text in slots:
        check_characters(text)
    return kind, slots, str(label)


def slots_of(row: Row) -> tuple[Kind, list[Slot], str]:
    """`read_slots` of a row that was read from a file, and of one that could not be. Raises BadRow."""
    return read_slots(value_of_row(row), row.place)


def value_of_row(row: Row) -> Any:
    """What a row of a file says. Raises BadRow where it could not be read."""
    if row.trouble:
        raise BadRow(row.trouble)
    return row.value


def _of_one_answer(row: dict[str, Any]) -> tuple[Kind, list[Slot]]:
    system = [("user", row["system"])] if _has_system_column(row) else []
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), list):
            return "conversation", [*system, *(slot for item in row[column] for slot in _turn(item))]
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        asked = [("user", row[column]) for column in ("instruction", "input") if row.get(column)]
        for _, text in asked:
            if not isinstance(text, str):
                raise BadRow("a message has no text or no role")
        return "conversation", [*system, *_rounds(row.get("history")), *asked, ("assistant", row["output"])]
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return "document", [("document", row[column])]
    if is_feedback(row):
        raise BadRow("answers with opinions; hanlin data pairs makes pairs of them")
    raise BadRow("no pair, conversation or document", f"the columns are {', '.join(map(str, row))[:120]}")


def _has_system_column(row: dict[str, Any]) -> bool:
    """ShareGPT's and Alpaca's place for a system text."""
    return isinstance(row.get("system"), str) and bool(row["system"].strip())


def _rounds(history: Any) -> Iterator[Slot]:
    """The texts of Alpaca's earlier rounds, [question, answer] each."""
    for pair in history if isinstance(history, list) else [history]:
        for place, text in enumerate(pair if isinstance(pair, list) else [pair]):
            if isinstance(text, str) and text.strip():
                yield ("user", "assistant")[place % 2], text


def _turn(item: Any) -> Iterator[Slot]:
    """The texts of one message. A call of a tool stands in for a text (OpenAI: content null, tool_calls)."""
    if not isinstance(item, dict):
        raise BadRow("a message is not an object")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    calls = [*_strings(item.get("tool_calls")), *_strings(item.get("function_call"))]
    if not isinstance(role, str) or (content is None and not calls):
        raise BadRow("a message has no text or no role")
    side = "assistant" if role in _ASSISTANT else "tool" if role in _TOOL else "user"
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if isinstance(text, str):
            if text or not calls:
                yield side, text
        elif text is not None:
            raise BadRow("a message is not text", "only texts, and lists of parts {type: text, text}, can be read")
    yield from (("tool", text) for text in calls)


def _strings(value: Any) -> Iterator[str]:
    """What a call says: its arguments, as text or the texts in them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("id", "type", "name"):
                yield from _strings(item)


def edited(row: dict[str, Any], edits: dict[Slot, str]) -> dict[str, Any]:
    """The row with each (side, text) of `edits` exchanged."""
    changed = {}
    for column, value in row.items():
        side = OPENAI.get(column, column)
        if side in ("chosen", "rejected"):
            changed[column] = _answer(value, side, edits)
        else:
            changed[column] = _exchanged(value, edits)
    return changed | _question(row, edits)


def _question(row: dict[str, Any], edits: dict[Slot, str]) -> dict[str, str]:
    """Alpaca's columns of a pair, whose prompt is both: parted at the same line, or all of it in the first."""
    if not is_pair(row) or not isinstance(row.get("instruction"), str) or not row.get("input"):
        return {}
    before = question_of(row)
    after = edits.get(("prompt", before), before)
    if after == before:
        return {}
    first = row["instruction"].count("\n") + 1 if after.count("\n") == before.count("\n") else len(after)
    lines = after.split("\n")
    return {"instruction": "\n".join(lines[:first]), "input": "\n".join(lines[first:])}


def _answer(value: Any, side: str, edits: dict[Slot, str]) -> Any:
    if isinstance(value, list) and value:
        return [*(_exchanged(item, edits) for item in value[:-1]), _answer(value[-1], side, edits)]
    if isinstance(value, dict):
        return {key: _answer(inner, side, edits) for key, inner in value.items()}
    if not isinstance(value, str) or (side, value) in edits or not is_transcript(value):
        return edits.get((side, value), value) if isinstance(value, str) else value
    return with_turns(value, lambda text, is_last: _answer(text, side, edits) if is_last else _exchanged(text, edits))


def _exchanged(value: Any, edits: dict[Slot, str]) -> Any:
    """Outside the answers a text may be the prompt's, or the chosen answer told again (`messages` of UltraFeedback)."""
    if isinstance(value, list):
        return [_exchanged(item, edits) for item in value]
    if isinstance(value, dict):
        return {key: _exchanged(inner, edits) for key, inner in value.items()}
    if isinstance(value, str):
        for side in ("prompt", "user", "assistant", "tool", "document", "chosen"):
            if (side, value) in edits:
                return edits[(side, value)]
        if is_transcript(value):
            return with_turns(value, lambda text, _: _exchanged(text, edits))
    return value


def without_system(row: dict[str, Any], kind: Kind, slots: list[Slot]) -> list[Slot]:
    """A row's texts without the system text, which says nothing of what the row is about."""
    if kind == "pair":
        # A prompt's turns are odd in number from the first user turn to the last.
        return slots[1:] if len(slots) % 2 == 0 else slots
    if kind == "document":
        return slots
    items = row.get("messages") if isinstance(row.get("messages"), list) else row.get("conversations")
    first = items[0] if isinstance(items, list) and items else None
    is_system = isinstance(first, dict) and not {"system", "developer"}.isdisjoint(
        (first.get("role"), first.get("from"))
    )
    return slots[is_system + _has_system_column(row) :]
