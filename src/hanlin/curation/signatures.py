"""MinHash signatures of many rows, in memory or in a file: read block by block, or a few rows at a time.

A mapped file would count as memory of the process as it is read; this one does not, whatever the number of rows.
"""

import os
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.fingerprints import NUM_BANDS, NUM_PERMUTATIONS

_BLOCK = 8192  # rows read at once
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Signatures:
    """Of N rows and K keys: 120 numbers each."""

    def __init__(self, held: NDArray[np.uint32] | IO[bytes], count: int, num_keys: int) -> None:
        """`held`: an array [N, K, 120], or a file with its bytes."""
        self._held, self._count, self._num_keys = held, count, num_keys
        self._row_bytes = num_keys * NUM_PERMUTATIONS * 4

    def of(self, rows: Sequence[int], key: int) -> NDArray[np.uint32]:
        """The signatures [n, 120] of some rows by one key."""
        if isinstance(self._held, np.ndarray):
            return self._held[rows, key]
        size = NUM_PERMUTATIONS * 4
        file, start = self._held.fileno(), key * size
        read = b"".join(os.pread(file, size, row * self._row_bytes + start) for row in rows)
        return np.frombuffer(read, np.uint32).reshape(-1, NUM_PERMUTATIONS)

    def bands(self, key: int) -> NDArray[np.uint64]:
        """A hash [N, 20] of each band of each row: rows that agree in a band have the same."""
        found = np.empty((self._count, NUM_BANDS), np.uint64)
        for start, block in self._blocks(key):
            found[start : start + len(block)] = hash_bands(block)
        return found

    def _blocks(self, key: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        if isinstance(self._held, np.ndarray):
            yield 0, self._held[:, key]
            return
        for start in range(0, self._count, _BLOCK):
            rows = min(_BLOCK, self._count - start)
            read = os.pread(self._held.fileno(), rows * self._row_bytes, start * self._row_bytes)
            yield start, np.frombuffer(read, np.uint32).reshape(rows, self._num_keys, NUM_PERMUTATIONS)[:, key]


def hash_bands(near: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each of the 20 bands of signatures [N, 120]."""
    bands = near.reshape(len(near), NUM_BANDS, NUM_PERMUTATIONS // NUM_BANDS)
    total = np.zeros(bands.shape[:2], np.uint64)
    for place in range(bands.shape[2]):
        total ^= bands[:, :, place]
        total *= _MIX
        total ^= total >> np.uint64(29)
    return total
