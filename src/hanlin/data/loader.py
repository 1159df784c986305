"""The order of training: which pairs make up optimizer step number k, from a seed and one integer.

Pairs are shuffled anew each epoch by (seed, epoch) and cut into steps of `batch_pairs`; a step may span two epochs and
only the very last one can be smaller. Nothing is remembered between steps, so a run resumes from the step number alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np


class Order(Protocol):
    """Which examples make up each optimizer step, by their indices."""

    @property
    def num_steps(self) -> int: ...
    def step(self, number: int, /) -> list[int]: ...


class PairOrder:
    """Indices of the pairs of each step. `num_pairs` pairs, `batch_pairs` a step, for `epochs` passes (a fraction is
    fine).
    """

    def __init__(self, num_pairs: int, *, batch_pairs: int, epochs: float, seed: int, shuffle: bool = True) -> None:
        self.num_pairs = num_pairs
        self.batch_pairs = batch_pairs
        self.total = round(num_pairs * epochs)
        self.seed = seed
        self.shuffle = shuffle

    @property
    def num_steps(self) -> int:
        return -(-self.total // self.batch_pairs)

    def step(self, number: int) -> list[int]:
        """Indices of step `number`, counted from 0; raises IndexError past the end."""
        start = number * self.batch_pairs
        if not 0 <= start < self.total:
            raise IndexError(f"step {number} of {self.num_steps}")
        places = range(start, min(start + self.batch_pairs, self.total))
        return [int(self._epoch(place // self.num_pairs)[place % self.num_pairs]) for place in places]

    def _epoch(self, epoch: int) -> Sequence[int]:
        return _permutation(self.num_pairs, self.seed, epoch) if self.shuffle else range(self.num_pairs)


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> Sequence[int]:
    return np.random.default_rng((seed, epoch)).permutation(size).tolist()
