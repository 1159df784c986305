"""Who computes what: examples divided over the ranks of a run, evenly by tokens.

Every rank divides alike from lengths alone, so nobody has to ask. Surprising: where weights are sharded, all ranks must
run the same number of passes, because each pass puts layers together from everybody's parts. Whoever has fewer streams
goes through the shortest example once more for each that it lacks; what comes of it is thrown away. It would have
waited meanwhile.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from hanlin.data.budget import Packer, split_by_budget, streams
from hanlin.training.parallel import World
from hanlin.types import Batch, Example

E = TypeVar("E", bound=Example)
T = TypeVar("T")


def divide(examples: Sequence[Example], num_ranks: int) -> list[list[int]]:
    """Indices of the examples of each rank: the longest first, each to the rank that has the fewest tokens so far."""
    if num_ranks == 1:
        return [list(range(len(examples)))]
    parts: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].num_tokens):
        load, rank = heapq.heappop(loads)
        parts[rank].append(index)
        heapq.heappush(loads, (load + examples[index].num_tokens, rank))
    return [sorted(part) for part in parts]


def num_streams(examples: Sequence[Example], world: World, *, max_tokens: int) -> list[int]:
    """How many streams each rank has of its own."""
    parts = divide(examples, world.size)
    return [len(split_by_budget([examples[index] for index in part], max_tokens=max_tokens)) for part in parts]


def shared_streams(
    examples: Sequence[E], pack: Packer[E], world: World, *, max_tokens: int, pad: bool = False
) -> Iterator[tuple[list[int], Batch]]:
    """`data.budget.streams` of this rank's share, and then the repeated ones until it has as many as the others."""
    mine = divide(examples, world.size)[world.rank]
    own = 0
    for indices, batch in streams([examples[index] for index in mine], pack, max_tokens=max_tokens, pad=pad):
        own += 1
        yield [mine[index] for index in indices], batch
    if world.size == 1:
        return
    shortest = min(range(len(examples)), key=lambda index: examples[index].num_tokens)
    for _ in range(max(num_streams(examples, world, max_tokens=max_tokens)) - own):
        for _, batch in streams([examples[shortest]], pack, max_tokens=max_tokens, pad=pad):
            yield [shortest], batch


class Noted:
    """Streams on their way to whoever scores them; `indices`, in order, are the examples that have come by."""

    def __init__(self, packed: Iterator[tuple[list[int], Batch]]) -> None:
        self._packed = packed
        self._seen: set[int] = set()

    @property
    def indices(self) -> list[int]:
        return sorted(self._seen)

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        for indices, batch in self._packed:
            self._seen.update(indices)
            yield indices, batch


def together(world: World, found: Iterable[tuple[int, T]]) -> list[T]:
    """What each rank found of its examples, by their indices, as one list on every rank in the examples' order."""
    everything: dict[int, T] = {}
    for part in world.gather(list(found)):
        everything |= dict(part)
    return [everything[index] for index in sorted(everything)]
