"""The order of training on sources too large to shuffle in memory, mixed by weights that may change near the end.

Step k takes from source s the places floor(k b w) to floor((k + 1) b w) of an endless row of epochs, each in a
pseudo-random order of its own. A place's example is computed, not looked up: a Feistel network is a permutation of a
power of two, and one that lands outside is sent through again. So nothing is remembered or drawn in advance, and a run
resumes from the step number alone. A step has `batch` examples, give or take one for each source.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hanlin.errors import ConfigError

_ROUNDS = 6
_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiplying by it spreads low bits over the high ones
_WORD = (1 << 64) - 1


class MixtureOrder:
    """Indices of the examples of each step, counted through all sources, of which source s has `sizes[s]`.

    `weights` are relative; `final_weights` hold over the last `final_share` of `num_steps`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch: int,
        num_steps: int,
        seed: int,
        weights: Sequence[float] = (),
        final_weights: Sequence[float] = (),
        final_share: float = 0.1,
        shuffle: bool = True,
    ) -> None:
        if len(sizes) > 1 and batch <= len(sizes):
            raise ConfigError(
                f"training.batch_pairs = {batch} is too small to mix {len(sizes)} sources in each step; raise it above "
                f"{len(sizes)}"
            )
        self.sizes, self.batch, self.num_steps, self.seed, self.shuffle = tuple(sizes), batch, num_steps, seed, shuffle
        self._offsets = [sum(self.sizes[:source]) for source in range(len(sizes))]
        self._weights = _normal(weights or sizes)
        self._final = _normal(final_weights) if final_weights else self._weights
        self._change = num_steps - round(final_share * num_steps) if final_weights else num_steps

    def step(self, number: int) -> list[int]:
        """Indices of step `number`, counted from 0; raises IndexError past the end."""
        if not 0 <= number < self.num_steps:
            raise IndexError(f"step {number} of {self.num_steps}")
        return [
            self._offsets[source] + self._example(source, place)
            for source in range(len(self.sizes))
            for place in range(self._taken(source, number), self._taken(source, number + 1))
        ]

    def _taken(self, source: int, steps: int) -> int:
        """How many examples of a source the first `steps` steps take."""
        before, after = min(steps, self._change), max(0, steps - self._change)
        share = before * self._weights[source] + after * self._final[source]
        return math.floor(self.batch * share + 1e-9)  # 3 * (1 / 3) is one

    def _example(self, source: int, place: int) -> int:
        epoch, place = divmod(place, self.sizes[source])
        return permuted(place, self.sizes[source], _keys(self.seed, epoch, source)) if self.shuffle else place


def permuted(place: int, size: int, keys: Sequence[int]) -> int:
    """Where a permutation of range(size), which the keys choose, sends `place`."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            mixed = ((right ^ key) * _MIX) & _WORD
            left, right = right, left ^ ((mixed ^ mixed >> 29) * _MIX & _WORD) >> 32 & mask
        place = left << half | right
        if place < size:
            return place


@lru_cache(maxsize=64)
def _keys(seed: int, epoch: int, source: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence((seed, epoch, source)).generate_state(_ROUNDS, np.uint64).tolist())


def _normal(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]
