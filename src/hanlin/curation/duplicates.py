"""Rows that say what another row says: which of them stay.

Rows are taken from the best to the worst; a row is dropped when a row that stays is the same (exact key) or similar
enough. So every dropped row has its better beside it, similar rows do not chain into one, and a second run finds
nothing. MinHash bands propose candidates (20 bands of 6: a pair of similarity 0.8 is proposed with probability 0.998),
whole signatures verify them. Bands are grouped one at a time, so memory grows by bytes a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.fingerprints import NUM_BANDS, NUM_PERMUTATIONS, exact_key, folded, grams, signatures, unit_hashes

KEYS = ("prompt", "prompt_chosen", "pair")
MOST_COMPARED = 1000  # rows that agree in one band and are compared each with each; more count as one group
Better = Literal["longer_chosen", "shorter_chosen", "first"]


@dataclass(frozen=True, slots=True)
class Prints:
    """Of N rows: exact keys, which of the three texts they have, their signatures, and what the better is judged by."""

    exact: NDArray[np.uint64]  # N, 2
    present: NDArray[np.bool_]  # N, 3
    near: NDArray[np.uint32]  # N, 3, 120
    size: NDArray[np.int64]  # N: units of the chosen answer
    tie: NDArray[np.uint64]  # N: a hash of the row, so that order of input decides nothing


def make_prints(rows: list[list[tuple[str, str]]], wanted: tuple[str, ...] = KEYS) -> Prints:
    """Prints of rows, each a list of (side, text)."""
    sets, present, exact, sizes, ties = [], [], [], [], []
    empty = np.zeros(0, np.uint64)
    for slots in rows:
        units = [(side, unit_hashes(folded(text))) for side, text in slots]
        parts = [(side, grams(one, 3)) for side, one in units]
        prompt = [gram for side, gram in parts if side in ("prompt", "user")]
        chosen = [gram for side, gram in parts if side in ("chosen", "assistant")]
        everything = [gram for _, gram in parts]
        texts = (prompt, [*prompt, *chosen] if chosen else [], everything)
        for name, text in zip(KEYS, texts, strict=True):
            grammed = np.concatenate(text) if text and name in wanted else empty
            present.append(len(grammed) > 0)
            sets.append(grammed)
        exact.append(exact_key("\n".join(text for _, text in slots)))
        sizes.append(sum(len(one) for side, one in units if side in ("chosen", "assistant", "document")))
        ties.append(int.from_bytes(exact[-1][:7], "little") ^ (hash_of(slots) & 0xFF))
    count = len(rows)
    return Prints(
        np.frombuffer(b"".join(exact), np.uint64).reshape(count, 2),
        np.array(present, bool).reshape(count, 3),
        signatures(sets).reshape(count, 3, NUM_PERMUTATIONS),
        np.array(sizes, np.int64),
        np.array(ties, np.uint64),
    )


def hash_of(slots: list[tuple[str, str]]) -> int:
    """A number from the raw text: not Python's hash, which changes from run to run."""
    import zlib

    return zlib.crc32("\0".join(text for _, text in slots).encode("utf-8", "surrogatepass"))


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
    prints: Prints, *, keys: tuple[str, ...], exact: bool = True, threshold: float = 0.7, better: Better
) -> Iterator[Duplicate]:
    """Every row that goes, by exact key first, then by each near key in turn."""
    order = ranking(prints, better)
    alive = np.ones(len(order), bool)
    if exact:
        first: dict[bytes, int] = {}
        for row in order.tolist():
            kept = first.setdefault(prints.exact[row].tobytes(), row)
            if kept != row:
                alive[row] = False
                yield Duplicate(row, kept, "exact", 1.0)
    for key in keys:
        column = KEYS.index(key)
        for duplicate in _near(prints, column, order, alive, threshold):
            alive[duplicate.row] = False
            yield duplicate


def _near(
    prints: Prints, column: int, order: NDArray[np.int64], alive: NDArray[np.bool_], threshold: float
) -> Iterator[Duplicate]:
    near = prints.near[:, column]
    groups = _groups(near, alive & prints.present[:, column])
    candidates: NDArray[np.bool_] = np.asarray((groups >= 0).any(axis=1))
    buckets: dict[int, list[int]] = {}
    for row in order[candidates[order]].tolist():
        mine = [group for group in groups[row].tolist() if group >= 0]
        others = sorted({other for group in mine for other in buckets.get(group, ())})
        if others:
            similar = (near[others] == near[row]).mean(axis=1)
            best = int(similar.argmax())
            if similar[best] >= threshold:
                yield Duplicate(row, others[best], KEYS[column], float(similar[best]))
                continue
        for group in mine:
            buckets.setdefault(group, []).append(row)


def _groups(near: NDArray[np.uint32], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row and band the number of the group of rows that agree in the band; -1 where a row is alone."""
    width = NUM_PERMUTATIONS // NUM_BANDS
    groups = np.full((len(near), NUM_BANDS), -1, np.int64)
    rows = np.flatnonzero(alive)
    base = 0
    for band in range(NUM_BANDS):
        values = np.ascontiguousarray(near[rows, band * width : (band + 1) * width])
        _, inverse, counts = np.unique(values.view(f"V{4 * width}").ravel(), return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        groups[rows[shared], band] = inverse[shared] + base
        base += len(counts)
    return groups


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
        near = prints.near[:, column]
        for rows in _buckets(_groups(near, prints.present[:, column])):
            if len(rows) > MOST_COMPARED:
                join(rows[0], rows[1:])
            elif len({root(row) for row in rows}) > 1:
                signatures_of = near[rows]
                for index, row in enumerate(rows[:-1]):
                    similar = (signatures_of[index + 1 :] == signatures_of[index]).mean(axis=1) >= threshold
                    join(row, [rows[index + 1 + int(place)] for place in np.flatnonzero(similar)])
    return np.array([root(row) for row in range(len(parent))], np.int64)


def _buckets(groups: NDArray[np.int64]) -> Iterator[list[int]]:
    """The rows of each group of each band."""
    for band in range(NUM_BANDS):
        order = np.argsort(groups[:, band], kind="stable")
        numbers = groups[order, band]
        for part in np.split(order[numbers >= 0], np.flatnonzero(np.diff(numbers[numbers >= 0])) + 1):
            if len(part) > 1:
                yield part.tolist()
