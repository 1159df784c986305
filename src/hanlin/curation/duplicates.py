"""Rows that say what another row says: which of them stay.

Rows are taken from the best to the worst; a row is dropped when a row that stays is the same (exact key) or similar
enough. So every dropped row has its better beside it, similar rows do not chain into one, and a second run finds
nothing. MinHash bands propose candidates (20 bands of 6: a pair of similarity 0.8 is proposed with probability 0.998),
whole signatures verify them. Memory grows by 250 bytes a row; signatures stay on disk.
"""

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.fingerprints import (
    NUM_BANDS,
    NUM_PERMUTATIONS,
    SHINGLE,
    Hashes,
    grams_of,
    key_of_units,
    signatures,
)
from hanlin.curation.rows import ANSWERED, ASKED
from hanlin.curation.rule import Text, count_units
from hanlin.curation.signatures import IN_MEMORY, Near, Signatures

KEYS = ("prompt", "prompt_chosen", "pair")
MOST_COMPARED = 1000  # rows that agree in one band and are compared each with each; more count as one group
MOST_KEPT = 200  # rows of one band that stay and are compared with; the best ones, so order still decides nothing
_BATCH = 1000  # rows fingerprinted at once
_UNITS_AT_ONCE, _TEXTS_AT_ONCE = 16, 64  # rows and texts whose units and shingles are: as many as a core's cache holds
Better = Literal["longer_chosen", "shorter_chosen", "first"]


@dataclass(frozen=True, slots=True)
class Prints:
    """Of N rows: exact keys, which of the three texts they have, signatures, and what the better row is judged by."""

    exact: NDArray[np.uint64]  # N, 2
    present: NDArray[np.bool_]  # N, 3
    near: Near
    size: NDArray[np.int64]  # N: units of the chosen answer
    tie: NDArray[np.uint64]  # N: a hash of the row, so that order of input decides nothing


def make_prints(rows: Sequence[Sequence[tuple[str, Text]]], wanted: tuple[str, ...] = KEYS) -> Prints:
    """Prints of rows, each a list of (side, text)."""
    made = print_arrays(rows, wanted)
    near = Signatures(made["near"], made["present"])
    return Prints(made["exact"], made["present"], near, made["size"], made["tie"])


def print_arrays(rows: Sequence[Sequence[tuple[str, Text]]], wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of `Prints`, to be kept in files."""
    count = len(rows)
    present = np.zeros((count, len(KEYS)), bool)
    parts: list[Hashes] = []
    used: list[tuple[int, int]] = []  # of each part: its row, and the first key that compares it
    exact, sizes, ties = [], [], []
    for start in range(0, count, _UNITS_AT_ONCE):
        count_units(text for slots in rows[start : start + _UNITS_AT_ONCE] for _, text in slots)
    for number, slots in enumerate(rows):
        exact.append(key_of_units([text.units for _, text in slots]))
        sizes.append(sum(len(text.units) for side, text in slots if side in (*ANSWERED, "document")))
        ties.append(int.from_bytes(exact[-1][:7], "little") ^ (hash_of(slots) & 0xFF))
        for side, text in slots:
            first = 0 if side in ASKED else 1 if side in ANSWERED else 2
            if wanted and len(text.units):
                parts.append(text.units)
                used.append((number, first))
                present[number, first:] = True
        present[number, 1] &= any(side in ANSWERED for side, _ in slots)
    present &= [key in wanted for key in KEYS]
    return {
        "exact": np.frombuffer(b"".join(exact), np.uint64).reshape(count, 2),
        "present": present,
        "near": _joined(signatures(_shingled(parts)), used, count),
        "size": np.array(sizes, np.int64),
        "tie": np.array(ties, np.uint64),
    }


def _shingled(parts: Sequence[Hashes]) -> list[Hashes]:
    starts = range(0, len(parts), _TEXTS_AT_ONCE)
    return [made for start in starts for made in grams_of(parts[start : start + _TEXTS_AT_ONCE], SHINGLE)]


def _joined(parts: NDArray[np.uint32], used: list[tuple[int, int]], count: int) -> NDArray[np.uint32]:
    """Signatures of all keys of all rows: that of a union is the smaller number at each place."""
    near = np.full((count, len(KEYS), NUM_PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    rows, firsts = np.array(used, np.int64).reshape(-1, 2).T
    for first in range(len(KEYS)):
        mine = rows[firsts == first]
        if len(mine):
            starts = np.flatnonzero(np.diff(mine, prepend=-1))
            near[mine[starts], first] = np.minimum.reduceat(parts[firsts == first], starts, axis=0)
        if first:
            np.minimum(near[:, first], near[:, first - 1], out=near[:, first])
    return near


class Gathering:
    """Prints of rows that come one by one; signatures go to a temporary file. A context manager, which removes it."""

    def __init__(self, wanted: tuple[str, ...], directory: Path | None = None) -> None:
        self._wanted = wanted
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed on exit)
        self._small: list[dict[str, np.ndarray]] = []
        self._batch: list[list[tuple[str, Text]]] = []

    def __enter__(self) -> "Gathering":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, slots: Sequence[tuple[str, str]]) -> None:
        """One more row."""
        self._batch.append([(side, Text(text)) for side, text in slots])
        if len(self._batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        made = print_arrays(self._batch, self._wanted)
        self._file.write(np.ascontiguousarray(made.pop("near")).tobytes())
        self._small.append(made)
        self._batch.clear()

    def prints(self) -> Prints:
        """Of all rows."""
        self._flush()
        self._file.flush()
        joined = {name: np.concatenate([part[name] for part in self._small]) for name in self._small[0]}
        held: NDArray[np.uint32] | IO[bytes] = self._file
        if (size := self._file.tell()) <= IN_MEMORY:
            self._file.seek(0)
            held = np.frombuffer(self._file.read(size), np.uint32).reshape(-1, len(KEYS), NUM_PERMUTATIONS)
        return Prints(near=Signatures(held, joined["present"]), **joined)


def hash_of(slots: Sequence[tuple[str, Text]]) -> int:
    """A number from the raw text: not Python's hash, which changes from run to run."""
    return zlib.crc32("\0".join(text.raw for _, text in slots).encode("utf-8", "surrogatepass"))


def ranking(prints: Prints, better: Better) -> NDArray[np.int64]:
    """Row numbers from the best to the worst."""
    if better == "first":
        return np.arange(len(prints.size))
    size = -prints.size if better == "longer_chosen" else prints.size
    return np.lexsort((np.arange(len(size)), prints.tie, size))


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Row `row` goes because row `of` stays; `key` says in what they are alike."""

    row: int
    of: int
    key: str
    similarity: float


def find_duplicates(
    prints: Prints,
    *,
    keys: tuple[str, ...],
    exact: bool = True,
    threshold: float = 0.7,
    better: Better,
) -> Iterator[Duplicate]:
    """Every row that goes, by exact key first, then by each near key in turn."""
    order = ranking(prints, better)
    alive = np.ones(len(order), bool)
    for duplicate in _same(prints, order) if exact else ():
        alive[duplicate.row] = False
        yield duplicate
    for key in keys:
        column = KEYS.index(key)
        for duplicate in _near(prints, column, order, alive, threshold):
            alive[duplicate.row] = False
            yield duplicate


def _same(prints: Prints, order: NDArray[np.int64]) -> Iterator[Duplicate]:
    """Rows with the exact key of a better one."""
    if not len(order):
        return
    _, inverse = np.unique(prints.exact[order].view("V16").ravel(), return_inverse=True)
    best = np.full(int(inverse.max()) + 1, len(order), np.int64)
    np.minimum.at(best, inverse, np.arange(len(order)))
    for place in np.flatnonzero(best[inverse] != np.arange(len(order))).tolist():
        yield Duplicate(int(order[place]), int(order[best[inverse[place]]]), "exact", 1.0)


def _near(
    prints: Prints,
    column: int,
    order: NDArray[np.int64],
    alive: NDArray[np.bool_],
    threshold: float,
) -> Iterator[Duplicate]:
    groups = prints.near.groups(column)
    candidates = alive & np.asarray((groups >= 0).any(axis=1))
    low = low_bytes(prints.near, column, len(order))
    unseen = NUM_PERMUTATIONS - low.shape[1]
    buckets: dict[int, list[int]] = {}
    for row in order[candidates[order]].tolist():
        mine = [group for group in groups[row].tolist() if group >= 0]
        others = sorted({other for group in mine for other in buckets.get(group, ())})
        if others:
            most = ((low[others] == low[row]).sum(axis=1) + unseen) / NUM_PERMUTATIONS
            found = _most_similar(prints.near, column, row, others, most, threshold)
            if found is not None:
                yield Duplicate(row, found[0], KEYS[column], found[1])
                continue
        for group in mine:
            bucket = buckets.setdefault(group, [])
            if len(bucket) < MOST_KEPT:
                bucket.append(row)


def _most_similar(
    near: Near, key: int, row: int, others: Sequence[int], most: NDArray[np.float64], threshold: float
) -> tuple[int, float] | None:
    """The most similar of other rows, the first of equals, and how similar it is; None where none reaches the
    threshold. `most` bounds each one's similarity from above: those that promise most are looked at first, and few are.
    """
    own = found = None
    for place in np.argsort(-most, kind="stable").tolist():
        if most[place] < (threshold if found is None else found[1]):
            break
        own = near.of([row], key) if own is None else own
        similar = float((near.of([others[place]], key) == own).mean())
        if similar >= threshold and (found is None or (-similar, others[place]) < (-found[1], found[0])):
            found = others[place], similar
    return found


def low_bytes(near: Near, key: int, count: int) -> NDArray[np.uint8]:
    """The lowest byte of each of the 120 numbers of all `count` rows by one key, of fewer numbers where that is much:
    where these differ, so do the numbers. Signatures that lie in files are read for the few rows that remain.
    """
    width = max(1, min(NUM_PERMUTATIONS, IN_MEMORY // max(1, count)))
    low = np.empty((count, width), np.uint8)
    for first, block in near.blocks(key):
        low[first : first + len(block)] = block[:, :width].astype(np.uint8)
    return low


def similar_groups(prints: Prints, *, keys: tuple[str, ...], threshold: float = 0.7) -> NDArray[np.int64]:
    """The number of each row's group: rows that are the same or similar by any key, and rows similar to these."""
    parent = list(range(len(prints.size)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    def join(row: int, others: list[int]) -> None:
        for other in others:
            one, two = sorted((root(row), root(other)))
            parent[two] = one

    first: dict[bytes, int] = {}
    for row in range(len(parent)):
        join(row, [first.setdefault(prints.exact[row].tobytes(), row)])
    for key in keys:
        column = KEYS.index(key)
        for rows in _buckets(prints.near.groups(column)):
            if len(rows) > MOST_COMPARED:
                join(rows[0], rows[1:])
            elif len({root(row) for row in rows}) > 1:
                signatures_of = prints.near.of(rows, column)
                for index, row in enumerate(rows[:-1]):
                    similar = (signatures_of[index + 1 :] == signatures_of[index]).mean(axis=1) >= threshold
                    join(row, [rows[index + 1 + int(place)] for place in np.flatnonzero(similar)])
    return np.array([root(row) for row in range(len(parent))], np.int64)


def _buckets(groups: NDArray[np.int32]) -> Iterator[list[int]]:
    """The rows of each group of each band."""
    for band in range(NUM_BANDS):
        order = np.argsort(groups[:, band], kind="stable")
        numbers = groups[order, band]
        for part in np.split(order[numbers >= 0], np.flatnonzero(np.diff(numbers[numbers >= 0])) + 1):
            if len(part) > 1:
                yield part.tolist()
