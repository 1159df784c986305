"""Duplicates over all chunks of a run: the prints that workers left in files, brought together.

What grows with the rows is shared out: each band of each key is grouped by a worker, which reads nothing but that
band of the chunks' files. Which row of a group stays is decided in one place, from the best to the worst, since one
choice depends on those before; signatures of the rows that it compares are read where they lie.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.duplicates import KEYS, Duplicate, Prints, find_duplicates
from hanlin.curation.fingerprints import NUM_BANDS, NUM_PERMUTATIONS
from hanlin.curation.recipe import DuplicatesSection
from hanlin.curation.shards import write_file
from hanlin.curation.signatures import IN_MEMORY, group_band, join_bands
from hanlin.curation.work import part
from hanlin.curation.workers import Workers

_OPEN_FILES = 256
_HASHES_OF_ROW = len(KEYS) * NUM_BANDS * 8  # bytes in a chunk's file of bands


def find_in_chunks(
    section: DuplicatesSection, work: Path, numbers: Sequence[int], workers: Workers
) -> Iterator[tuple[Duplicate, str, str]]:
    """Every row that goes, numbered over all chunks, with its place and that of the row it is like."""
    arrays = {name: [] for name in ("exact", "present", "size", "tie", "places")}
    for number in numbers:
        with np.load(part(work, number, "npz")) as saved:
            for name, parts in arrays.items():
                parts.append(saved[name])
    places = [place for part in arrays.pop("places") for place in part.tolist()]
    counts = [len(one) for one in arrays["size"]]
    joined = {name: np.concatenate(arrays.pop(name)) for name in tuple(arrays)}
    with ChunkSignatures(work, numbers, counts, workers) as near:
        prints = Prints(joined["exact"], joined["present"], near, joined["size"], joined["tie"])
        for one in find_duplicates(
            prints, keys=section.near, exact=section.exact, threshold=section.threshold, better=section.better
        ):
            yield one, places[one.row].decode(), places[one.of].decode()


class ChunkSignatures:
    """`Near` of a run's rows, in the files of its chunks. A context manager, which closes them."""

    def __init__(self, work: Path, numbers: Sequence[int], counts: Sequence[int], workers: Workers) -> None:
        """`counts`: rows of each chunk."""
        self._work, self._numbers, self._workers = work, numbers, workers
        self._firsts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
        self._open: dict[int, int] = {}

    def __enter__(self) -> "ChunkSignatures":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def of(self, rows: Sequence[int], key: int) -> NDArray[np.uint32]:
        if (held := self._held) is not None:
            return held[rows, key]
        places = np.searchsorted(self._firsts, rows, side="right") - 1
        inside = (rows - self._firsts[places]) * len(KEYS) + key
        size = NUM_PERMUTATIONS * 4
        read = (os.pread(self._file(place), size, index * size) for place, index in zip(places, inside, strict=True))
        return np.frombuffer(b"".join(read), np.uint32).reshape(-1, NUM_PERMUTATIONS)

    def blocks(self, key: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for first, number in zip(self._firsts.tolist(), self._numbers, strict=False):
            yield first, _read_near(self._work, number)[:, key]

    def groups(self, key: int) -> NDArray[np.int32]:
        group = partial(group_chunks, work=self._work, numbers=self._numbers)
        jobs = [(key, band) for band in range(NUM_BANDS)]
        for _ in self._workers.each(group, jobs):
            pass
        count = int(self._firsts[-1])
        return join_bands((_read_groups(_groups_file(self._work, job), count) for job in jobs), count)

    @cached_property
    def _held(self) -> NDArray[np.uint32] | None:
        """All of them, where they are few."""
        count = int(self._firsts[-1])
        if count * len(KEYS) * NUM_PERMUTATIONS * 4 > IN_MEMORY:
            return None
        return np.concatenate([_read_near(self._work, number) for number in self._numbers])

    def _file(self, place: int) -> int:
        if place not in self._open:
            if len(self._open) == _OPEN_FILES:
                self._close()
            self._open[place] = os.open(part(self._work, self._numbers[place], "near"), os.O_RDONLY)
        return self._open[place]

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _read_near(work: Path, number: int) -> NDArray[np.uint32]:
    """The signatures [n, K, 120] of a chunk."""
    return np.fromfile(part(work, number, "near"), np.uint32).reshape(-1, len(KEYS), NUM_PERMUTATIONS)


def group_chunks(job: tuple[int, int], *, work: Path, numbers: Sequence[int]) -> None:
    """Group the rows of all chunks that share one (key, band), and leave the groups in a file."""
    key, band = job
    read = []
    for number in numbers:
        file = part(work, number, "bands")
        count = file.stat().st_size // _HASHES_OF_ROW
        read.append(np.fromfile(file, np.uint64, count, offset=(key * NUM_BANDS + band) * count * 8))
    groups = group_band(np.concatenate(read))
    rows = np.flatnonzero(groups >= 0)
    write_file(_groups_file(work, job), [rows.tobytes(), groups[rows].tobytes()], lasting=False)


def _groups_file(work: Path, job: tuple[int, int]) -> Path:
    key, band = job
    return work / f"groups-{KEYS[key]}-{band:02d}"


def _read_groups(file: Path, count: int) -> NDArray[np.int32]:
    shared = file.stat().st_size // 12
    groups = np.full(count, -1, np.int32)
    groups[np.fromfile(file, np.int64, shared)] = np.fromfile(file, np.int32, shared, offset=shared * 8)
    return groups
