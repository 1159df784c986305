"""Rows that hold a benchmark's items, found before they are trained on.

Of an item with 13 units or more (Latin words and single Han characters), the share of its units that lie in 13-grams
of the row decides (GPT-3, arXiv 2005.14165, appendix C, took any one 13-gram). A shorter item must be a whole text or a
whole line of the row.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.config import missing_file
from hanlin.curation.fingerprints import Hashes, folded, grams, unit_hashes
from hanlin.errors import DataError

SIZE, SHORTEST = 13, 4  # units


@dataclass(slots=True)
class Benchmarks:
    """Items of all benchmark files, by their 13-grams or, short ones, by all their units."""

    names: list[str] = field(default_factory=list)  # "gsm8k.jsonl:12"
    sizes: list[int] = field(default_factory=list)
    short: dict[bytes, int] = field(default_factory=dict)
    places: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))  # gram: (item, unit)
    known: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, name: str, text: str) -> None:
        units = unit_hashes(folded(text))
        if len(units) < SHORTEST:
            return
        item = len(self.names)
        self.names.append(name)
        self.sizes.append(len(units))
        if len(units) < SIZE:
            self.short[units.tobytes()] = item
            return
        for place, gram in enumerate(grams(units, SIZE).tolist()):
            self.places[gram].append((item, place))


def read_benchmarks(files: tuple[str, ...]) -> Benchmarks:
    """Items of JSON, JSONL, CSV, TSV and text files (an item a line). Raises DataError."""
    benchmarks = Benchmarks()
    for file in files:
        path = Path(file).expanduser()
        if not path.is_file():
            raise DataError(missing_file(path))
        for number, text in enumerate(_items(path), start=1):
            benchmarks.add(f"{path.name}:{number}", text)
    benchmarks.known = np.sort(np.fromiter(benchmarks.places, np.uint64, len(benchmarks.places)))
    return benchmarks


def _items(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix in (".csv", ".tsv"):
        for row in csv.reader(text.splitlines()[1:], delimiter="\t" if path.suffix == ".tsv" else ","):
            yield _question([cell for cell in row if len(cell) > 3])
    elif path.suffix == ".json":
        rows = json.loads(text)
        yield from (_text_of(row) for row in (rows if isinstance(rows, list) else [rows]))
    elif path.suffix == ".jsonl":
        yield from (_text_of(json.loads(line)) for line in text.split("\n") if line.strip())
    else:
        yield from (line for line in text.split("\n") if line.strip())


def _text_of(row: Any) -> str:
    """The question of an item: the field of that name, or else the longest text."""
    if isinstance(row, dict):
        for column in ("question", "prompt", "problem", "instruction", "query", "text"):
            if isinstance(row.get(column), str):
                return row[column]
        return _question([value for value in row.values() if isinstance(value, str)])
    return str(row)


def _question(cells: list[str]) -> str:
    return max(cells, key=len, default="")


def find_contamination(texts: list[str], benchmarks: Benchmarks, *, coverage: float) -> tuple[str, float] | None:
    """The item that a row's texts hold most of, and how much, where that is `coverage` or more."""
    if not benchmarks.names:
        return None
    covered: dict[int, set[int]] = defaultdict(set)
    for text in texts:
        made = folded(text)
        if benchmarks.short:
            for line in {made, *made.split("\n")}:
                item = benchmarks.short.get(unit_hashes(line).tobytes()) if len(line) < 400 else None
                if item is not None:
                    return benchmarks.names[item], 1.0
        found = grams(unit_hashes(made), SIZE)
        if not len(benchmarks.known) or not len(found):
            continue
        at = np.minimum(np.searchsorted(benchmarks.known, found), len(benchmarks.known) - 1)
        for gram in found[benchmarks.known[at] == found].tolist():
            for item, place in benchmarks.places[gram]:
                covered[item].update(range(place, place + SIZE))
    shares = {item: len(units) / benchmarks.sizes[item] for item, units in covered.items()}
    if not shares:
        return None
    item = max(shares, key=lambda one: (shares[one], -one))
    return (benchmarks.names[item], shares[item]) if shares[item] >= coverage else None
