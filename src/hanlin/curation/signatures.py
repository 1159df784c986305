"""MinHash signatures of many rows, and which of them share a band and so are worth comparing.

Signatures are in memory or in a file: read block by block, or a few rows at a time. A mapped file would count as
memory of the process as it is read; this one does not, whatever the number of rows.
"""

import os
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.fingerprints import NUM_BANDS, NUM_PERMUTATIONS

IN_MEMORY = 256_000_000  # bytes of signatures; more stay in their files
_BLOCK = 8192  # rows read at once
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Near(Protocol):
    """Of N rows, each with K texts (keys) to compare it by."""

    def of(self, rows: Sequence[int], key: int) -> NDArray[np.uint32]:
        """The signatures [n, 120] of some rows by one key."""
        ...

    def blocks(self, key: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """All signatures by one key in order, some rows at a time, each with the number of its first row."""
        ...

    def groups(self, key: int) -> NDArray[np.int32]:
        """For each row and band [N, 20] the number of the group of rows that share the band; -1 for a row alone."""
        ...


class Signatures:
    """`Near` of one process."""

    def __init__(self, held: NDArray[np.uint32] | IO[bytes], present: NDArray[np.bool_]) -> None:
        """`held`: an array [N, K, 120], or a file with its bytes; `present` [N, K]: which texts there are."""
        self._held, self._present = held, present
        self._row_bytes = present.shape[1] * NUM_PERMUTATIONS * 4

    def of(self, rows: Sequence[int], key: int) -> NDArray[np.uint32]:
        if isinstance(self._held, np.ndarray):
            return self._held[rows, key]
        size = NUM_PERMUTATIONS * 4
        file, start = self._held.fileno(), key * size
        read = b"".join(os.pread(file, size, row * self._row_bytes + start) for row in rows)
        return np.frombuffer(read, np.uint32).reshape(-1, NUM_PERMUTATIONS)

    def groups(self, key: int) -> NDArray[np.int32]:
        hashes = np.zeros((NUM_BANDS, len(self._present)), np.uint64)
        for start, block in self.blocks(key):
            hashes[:, start : start + len(block)] = hash_bands(block, self._present[start : start + len(block), key])
        return join_bands(map(group_band, hashes), len(self._present))

    def blocks(self, key: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        count, num_keys = self._present.shape
        if isinstance(self._held, np.ndarray):
            yield 0, self._held[:, key]
            return
        for start in range(0, count, _BLOCK):
            rows = min(_BLOCK, count - start)
            read = os.pread(self._held.fileno(), rows * self._row_bytes, start * self._row_bytes)
            yield start, np.frombuffer(read, np.uint32).reshape(rows, num_keys, NUM_PERMUTATIONS)[:, key]


def hash_bands(near: NDArray[np.uint32], present: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """One number [20, N] for each band of signatures [N, 120], the same where rows agree in the band; 0: no text."""
    bands = near.reshape(len(near), NUM_BANDS, NUM_PERMUTATIONS // NUM_BANDS)
    total = np.zeros(bands.shape[:2], np.uint64)
    for place in range(bands.shape[2]):
        total ^= bands[:, :, place]
        total *= _MIX
        total ^= total >> np.uint64(29)
    return np.where(present, total.T, np.uint64(0))


def group_band(hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
    """The number, from 0, of the group of rows [N] that have the same hash; -1 for a row alone or with the hash 0."""
    rows = np.flatnonzero(hashes)
    _, inverse, counts = np.unique(hashes[rows], return_inverse=True, return_counts=True)
    shared = counts > 1
    groups = np.full(len(hashes), -1, np.int32)
    groups[rows] = np.where(shared, np.cumsum(shared) - 1, -1)[inverse]
    return groups


def join_bands(bands: Iterator[NDArray[np.int32]], count: int) -> NDArray[np.int32]:
    """Groups [N, 20] of the groups of each band, numbered on from band to band."""
    groups = np.empty((count, NUM_BANDS), np.int32)
    base = 0
    for band, mine in enumerate(bands):
        groups[:, band] = np.where(mine >= 0, mine + base, -1)
        base += int(mine.max(initial=-1)) + 1
    return groups
