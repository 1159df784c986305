"""What every rule says of one row, whatever the recipe makes of it."""

import json
from dataclasses import dataclass
from pathlib import Path

from hanlin.curation.policy import SIDE_RULES
from hanlin.curation.rows import read_slots
from hanlin.curation.rule import Around, Text
from hanlin.curation.shards import Trouble, find_shards, read_chunks
from hanlin.data.rows import BadRow
from hanlin.errors import DataError


@dataclass(frozen=True, slots=True)
class Line:
    """One side and one rule: the verdict in words, and the first stretch it is about."""

    side: str
    rule: str
    keep: bool
    reason: str
    found: str


def explain(place: str) -> list[Line]:
    """The verdicts on row "FILE:NUMBER" (from 1). Raises DataError where there is no such row."""
    name, _, number = place.rpartition(":")
    if not name or not number.isdigit():
        raise DataError(f"{place} should have the form FILE:ROW, such as pairs.jsonl:12")
    for chunk in read_chunks(find_shards([name]), chunk_bytes=4_000_000, largest_row=64_000_000):
        if chunk.first <= int(number) < chunk.first + len(chunk.rows):
            return _verdicts(chunk.rows[int(number) - chunk.first], place)
    raise DataError(f"{name} has no row {number}")


def _verdicts(raw: bytes | Trouble, place: str) -> list[Line]:
    if isinstance(raw, Trouble):
        raise DataError(f"{place}: {raw.reason}")
    try:
        _, slots, _ = read_slots(json.loads(raw), Path(place).name)
    except BadRow as bad:
        raise DataError(f"{place}: {bad.reason}") from None
    except ValueError:
        raise DataError(f"{place} is not JSON") from None
    lines, asked = [], None
    for side, raw_text in slots:
        text = Text(raw_text)
        around = Around(None if side in ("prompt", "user", "document") else asked, side)
        for rule in SIDE_RULES.values():
            if rule.name == "document" and side != "document":
                continue
            verdict = rule.check(text, around)
            found = raw_text[verdict.spans[0].start : verdict.spans[0].end] if verdict.spans else ""
            lines.append(Line(side, rule.name, verdict.keep, verdict.reason, found[:80]))
        if side in ("prompt", "user"):
            asked = text
    return lines
