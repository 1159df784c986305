"""A row of any form as texts with sides, and the row again with some of them changed.

A row that no rule changes is written byte for byte as it was read. A changed one keeps its form and all its columns:
only the texts that changed are exchanged, wherever the row repeats them.
"""

from typing import Any, Literal

from hanlin.data.rows import BadRow, read_row

Kind = Literal["pair", "conversation", "document"]
Slot = tuple[str, str]  # side, text
_ASSISTANT = ("assistant", "gpt", "model", "bot")


def read_slots(row: Any, name: str) -> tuple[Kind, list[Slot], str]:
    """What kind of row it is, its texts in order, and its id. Raises BadRow for a row that holds none of the kinds."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object")
    label = row.get("id") if isinstance(row.get("id"), str | int) else name
    if "chosen" in row or "rejected" in row:
        pair = read_row(row, name)
        prompt = [("prompt", message.content) for message in pair.prompt]
        return "pair", [*prompt, ("chosen", pair.chosen), ("rejected", pair.rejected)], pair.id
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), list):
            return "conversation", [_turn(item) for item in row[column]], str(label)
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        asked = [("user", row[column]) for column in ("instruction", "input") if row.get(column)]
        return "conversation", [*asked, ("assistant", row["output"])], str(label)
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return "document", [("document", row[column])], str(label)
    raise BadRow("no pair, conversation or document", f"the columns are {', '.join(map(str, row))[:120]}")


def _turn(item: Any) -> Slot:
    if not isinstance(item, dict):
        raise BadRow("a message is not an object")
    text = item.get("content") if item.get("content") is not None else item.get("value")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    if not isinstance(text, str) or not isinstance(role, str):
        raise BadRow("a message has no text or no role")
    return ("assistant" if role in _ASSISTANT else "user", text)


def edited(row: dict[str, Any], edits: dict[Slot, str]) -> dict[str, Any]:
    """The row with each (side, text) of `edits` exchanged."""
    changed = {}
    for column, value in row.items():
        if column in ("chosen", "rejected"):
            changed[column] = _answer(value, column, edits)
        else:
            changed[column] = _exchanged(value, edits)
    return changed


def _answer(value: Any, side: str, edits: dict[Slot, str]) -> Any:
    if isinstance(value, list) and value:
        return [*(_exchanged(item, edits) for item in value[:-1]), _answer(value[-1], side, edits)]
    if isinstance(value, dict):
        return {key: _answer(inner, side, edits) for key, inner in value.items()}
    return edits.get((side, value), value) if isinstance(value, str) else value


def _exchanged(value: Any, edits: dict[Slot, str]) -> Any:
    """Outside the answers a text may be the prompt's, or the chosen answer told again (`messages` of UltraFeedback)."""
    if isinstance(value, list):
        return [_exchanged(item, edits) for item in value]
    if isinstance(value, dict):
        return {key: _exchanged(inner, edits) for key, inner in value.items()}
    if isinstance(value, str):
        for side in ("prompt", "user", "assistant", "document", "chosen"):
            if (side, value) in edits:
                return edits[(side, value)]
    return value


def without_system(row: dict[str, Any], kind: Kind, slots: list[Slot]) -> list[Slot]:
    """A row's texts without the system text, which says nothing of what the row is about."""
    if kind == "pair":
        # A prompt's turns are odd in number from the first user turn to the last.
        return slots[1:] if len(slots) % 2 == 0 else slots
    items = row.get("messages") if isinstance(row.get("messages"), list) else row.get("conversations")
    first = items[0] if isinstance(items, list) and items else None
    is_system = isinstance(first, dict) and "system" in (first.get("role"), first.get("from"))
    return slots[1:] if kind == "conversation" and is_system else slots
