"""What is in some data: rows by file and kind, lengths and languages by side, turns, rows that come again."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.curation.conversion import LeftOut
from hanlin.curation.duplicates import Gathering, find_duplicates
from hanlin.curation.fingerprints import check_extras, exact_key
from hanlin.curation.languages import quick_language
from hanlin.curation.rows import ASKED, Slot, slots_of
from hanlin.curation.rule import Text
from hanlin.curation.shards import Row, read_rows
from hanlin.data.messages import BadRow
from hanlin.errors import DataError


@dataclass(slots=True)
class FileSurvey:
    """Of one file. `repeated` rows say what an earlier row says, of this file or one before it."""

    rows: int = 0
    left_out: int = 0
    characters: int = 0
    repeated: int = 0


@dataclass(slots=True)
class SideSurvey:
    """Of all texts of one side; `sizes` are in units, Han characters and Latin words."""

    texts: int = 0
    characters: int = 0
    sizes: array = field(default_factory=lambda: array("I"))
    languages: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Survey:
    """Of all files. `turns` counts rows by their answers (one pair: 1); `similar` near-duplicates are None where
    nobody asked for them.
    """

    files: dict[str, FileSurvey] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    sides: dict[str, SideSurvey] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    repeated: int = 0
    prompts_repeated: int = 0
    similar: int | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files.values())


def survey(files: Sequence[Path], *, near: bool = False) -> Survey:
    """Look at every row; `near` counts near-duplicates too, which takes longer and 1.5 KB of disk a row.

    Raises DataError where no row can be read, ConfigError where the extra `curate` is not installed.
    """
    check_extras()
    found = Survey()
    with Gathering(("pair",)) as gathered:
        _look(files, found, gathered if near else None)
        if not found.kinds:
            raise DataError(f"none of {found.rows:,} rows can be read: {found.left_out.why(files)}")
        if near:
            found.similar = sum(1 for _ in find_duplicates(gathered.prints(), keys=("pair",), better="first"))
    return found


def _look(files: Sequence[Path], found: Survey, gathered: Gathering | None) -> None:
    """Count every row, and gather those that do not repeat another."""
    seen: set[bytes] = set()
    prompts: set[bytes] = set()
    for row in read_rows(files):
        of_file = found.files.setdefault(row.file, FileSurvey())
        of_file.rows += 1
        try:
            slots = _slots(row, found)
        except BadRow as bad:
            of_file.left_out += 1
            found.left_out.add(row, bad.reason)
            continue
        of_file.characters += sum(len(text) for _, text in slots)
        _count_sides(found, slots)
        if _is_new(seen, [text for _, text in slots]):
            if gathered is not None:
                gathered.add(slots)
        else:
            of_file.repeated += 1
            found.repeated += 1
        asked = [text for side, text in slots if side in ASKED]
        found.prompts_repeated += bool(asked) and not _is_new(prompts, asked)


def _slots(row: Row, found: Survey) -> list[Slot]:
    kind, slots, _ = slots_of(row)
    found.kinds[kind] += 1
    if kind == "pair":
        found.turns[(len(slots) - 1) // 2] += 1  # the prompt's turns are odd without a system text, even with one
    elif kind == "conversation":
        found.turns[sum(side == "assistant" for side, _ in slots)] += 1
    return slots


def _count_sides(found: Survey, slots: Sequence[Slot]) -> None:
    for side, raw in slots:
        of_side = found.sides.setdefault(side, SideSurvey())
        text = Text(raw)
        of_side.texts += 1
        of_side.characters += len(raw)
        of_side.sizes.append(text.size)
        of_side.languages[language_label(text)] += 1


def language_label(text: Text) -> str:
    """ "zh-Hans", "zh-Hant", "zh" (nothing that tells them apart), "en", "other" or "none" (no letters)."""
    language = quick_language(text)
    if language != "zh":
        return language
    return f"zh-{text.variant}" if text.variant else "zh"


def _is_new(seen: set[bytes], texts: Sequence[str]) -> bool:
    key = exact_key("\n".join(texts))
    if key in seen:
        return False
    seen.add(key)
    return True


def as_dict(found: Survey) -> dict[str, Any]:
    """The survey as plain JSON values."""
    return {
        "rows": found.rows,
        "kinds": dict(found.kinds),
        "files": {
            name: {
                "rows": one.rows,
                "left_out": one.left_out,
                "characters": one.characters,
                "repeated": one.repeated,
            }
            for name, one in found.files.items()
        },
        "sides": {
            side: {
                "texts": one.texts,
                "characters": one.characters,
                "languages": dict(one.languages.most_common()),
                "units": lengths(one),
            }
            for side, one in found.sides.items()
        },
        "turns": {str(turns): count for turns, count in sorted(found.turns.items())},
        "repeated_rows": found.repeated,
        "repeated_prompts": found.prompts_repeated,
        "similar_rows": found.similar,
        "left_out": dict(found.left_out.counts),
    }


def lengths(side: SideSurvey) -> dict[str, float]:
    """Mean, median, 95th percentile and largest size of a side's texts, in units."""
    sizes = np.frombuffer(side.sizes, np.uint32) if len(side.sizes) else np.zeros(1, np.uint32)
    median, high = np.percentile(sizes, (50, 95)).tolist()
    return {"mean": float(sizes.mean()), "median": median, "p95": high, "max": int(sizes.max())}
