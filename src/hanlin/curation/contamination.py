"""Rows that hold a benchmark's items, found before they are trained on.

Of an item with 13 units or more (Latin words and single Han characters), the share of its units that lie in 13-grams
of the row decides (GPT-3, arXiv 2005.14165, appendix C, took any one 13-gram). A shorter item must be a whole text or a
whole line of the row.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.config import missing_file
from hanlin.curation.fingerprints import Hashes, folded, grams, unit_hashes
from hanlin.curation.rule import Text
from hanlin.curation.shards import read_rows, source_names
from hanlin.data.files import SUFFIXES
from hanlin.data.packed import bare_suffix, opened
from hanlin.data.tables import TABLES, read_cells
from hanlin.errors import DataError

SIZE, SHORTEST = 13, 4  # units
_QUESTIONS = ("question", "prompt", "problem", "instruction", "query", "text")


@dataclass(slots=True)
class Benchmarks:
    """Items of all benchmark files, by their 13-grams or, short ones, by all their units."""

    files: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # "gsm8k.jsonl:12"
    sizes: list[int] = field(default_factory=list)
    short: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    places: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))  # gram: (item, unit)
    too_short: Counter[str] = field(default_factory=Counter)  # items of a file that are not looked for
    known: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, name: str, text: str) -> None:
        units = unit_hashes(folded(text))
        if len(units) < SHORTEST:
            self.too_short[_file_of(name)] += 1
            return
        item = len(self.names)
        self.names.append(name)
        self.sizes.append(len(units))
        if len(units) < SIZE:
            self.short[units.tobytes()].append(item)
            return
        for place, gram in enumerate(grams(units, SIZE).tolist()):
            self.places[gram].append((item, place))


def read_benchmarks(files: tuple[str, ...]) -> Benchmarks:
    """Items of JSON, JSONL, Parquet, CSV, TSV and text files (an item a line). Raises DataError: an item that could
    not be read would be found nowhere.
    """
    paths = [Path(file).expanduser() for file in files]
    benchmarks = Benchmarks(source_names(paths))
    for path, name in zip(paths, benchmarks.files, strict=True):
        if not path.is_file():
            raise DataError(missing_file(path))
        try:
            items = list(_items(path))
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        if not any(items):
            raise DataError(f"{path} holds no items; name another file in decontamination.files")
        for number, text in enumerate(items, start=1):
            benchmarks.add(f"{name}:{number}", text)
    benchmarks.known = np.sort(np.fromiter(benchmarks.places, np.uint64, len(benchmarks.places)))
    return benchmarks


def _items(path: Path) -> Iterator[str]:
    if bare_suffix(path) in TABLES:
        with opened(path) as stream:
            yield from _of_table(list(read_cells(path, stream)))
    elif path.name.endswith(SUFFIXES):
        for row in read_rows([path]):
            if row.trouble:
                raise DataError(f"{path}, row {row.number}: {row.trouble}; mend it, all items are needed")
            yield _text_of(row.value)
    else:
        with opened(path) as stream:
            yield from (line for line in stream.read().decode("utf-8-sig").split("\n") if line.strip())


def _of_table(lines: list[list[str]]) -> Iterator[str]:
    """The column that is named as a question is, or of a table without such a header the question of every line."""
    header = [name.strip().lower() for name in lines[0]] if lines else []
    column = next((header.index(name) for name in _QUESTIONS if name in header), None)
    for cells in lines if column is None else lines[1:]:
        "".join(cells).encode()  # UnicodeEncodeError: a cell that is not UTF-8
        if column is None:
            yield _question(cells)
        elif column < len(cells):
            yield cells[column]


def _question(cells: list[str]) -> str:
    """The longest text; of MMLU's own lines, which are a question, four choices and a letter, the first."""
    if len(cells) == 6 and cells[-1] in tuple("ABCD"):
        return cells[0]
    return max(cells, key=len, default="")


def _text_of(row: Any) -> str:
    """The question of an item: the field of that name, or else the longest text."""
    if not isinstance(row, dict):
        return str(row)
    named = {str(key).lower(): value for key, value in row.items()}
    for column in _QUESTIONS:
        if text := _joined(named.get(column)):
            return text
    return _question([_joined(value) for value in row.values()])


def _joined(value: Any) -> str:
    """A text, or those of a list (MT-bench's turns) or of messages."""
    if isinstance(value, list):
        return "\n".join(filter(None, map(_joined, value)))
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Hit:
    """An item that a row holds, and the share of it that was found there."""

    item: str
    coverage: float


def find_contamination(texts: Sequence[Text], benchmarks: Benchmarks, *, coverage: float) -> list[Hit]:
    """Every item of which a row's texts hold `coverage` or more, what they hold most of first."""
    if not benchmarks.names:
        return []
    whole: set[int] = set()
    covered: dict[int, set[int]] = defaultdict(set)
    for text in texts:
        if benchmarks.short:
            for line in {text.simplified, *text.simplified.split("\n")}:
                if len(line) < 400:
                    whole.update(benchmarks.short.get(unit_hashes(line).tobytes(), ()))
        found = grams(text.units, SIZE)
        if not len(benchmarks.known) or not len(found):
            continue
        at = np.minimum(np.searchsorted(benchmarks.known, found), len(benchmarks.known) - 1)
        for gram in found[benchmarks.known[at] == found].tolist():
            for item, place in benchmarks.places[gram]:
                covered[item].update(range(place, place + SIZE))
    shares = {item: len(units) / benchmarks.sizes[item] for item, units in covered.items()} | dict.fromkeys(whole, 1.0)
    best = sorted((-share, item) for item, share in shares.items() if share >= coverage)
    return [Hit(benchmarks.names[item], -share) for share, item in best]


@dataclass(slots=True)
class BenchmarkReport:
    """What was found of one benchmark file: its items (not those `too_short` to be looked for), those that a row holds,
    such rows, and the shares of items.
    """

    name: str
    items: int
    too_short: int
    hit: int = 0
    rows: int = 0
    coverage: float = 0.0
    """The mean of what rows hold of an item, over all findings."""
    most: float = 0.0


def report_contamination(benchmarks: Benchmarks, findings: Iterable[tuple[str, Hit]]) -> list[BenchmarkReport]:
    """A report of every benchmark file, found in or not, from all (row, hit)."""
    items = Counter(_file_of(name) for name in benchmarks.names)
    hit: dict[str, set[str]] = defaultdict(set)
    rows: dict[str, set[str]] = defaultdict(set)
    shares: dict[str, list[float]] = defaultdict(list)
    for row, one in findings:
        file = _file_of(one.item)
        hit[file].add(one.item)
        rows[file].add(row)
        shares[file].append(one.coverage)
    return [
        BenchmarkReport(
            *(name, items[name], benchmarks.too_short[name], len(hit[name]), len(rows[name])),
            *(sum(shares[name]) / max(1, len(shares[name])), max(shares[name], default=0.0)),
        )
        for name in benchmarks.files
    ]


def _file_of(item: str) -> str:
    return item.rpartition(":")[0]
