"""Examples divided into streams of at most so many tokens, and what texts will score."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from hanlin.types import Batch, Counts, Example, Tokens

_PAD_STEP = 1024

E = TypeVar("E", bound=Example)
C = TypeVar("C", bound=Example, contravariant=True)


class Packer(Protocol[C]):
    """Packs examples of one kind into one stream of at least `pad_to` tokens."""

    def __call__(self, examples: Sequence[C], /, *, pad_to: int) -> Batch: ...


def split_by_budget(examples: Sequence[Example], *, max_tokens: int) -> list[list[int]]:
    """Divide examples, by index, into streams of at most `max_tokens` tokens: first fit by decreasing length.

    One longer than the budget gets a stream of its own. The result depends on nothing but the arguments.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].num_tokens):
        size = examples[index].num_tokens
        for number, free in enumerate(room):
            if size <= free:
                bins[number].append(index)
                room[number] -= size
                break
        else:
            bins.append([index])
            room.append(max_tokens - size)
    return bins


def streams(
    examples: Sequence[E], pack: Packer[E], *, max_tokens: int, pad: bool = False
) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, packed into streams of at most `max_tokens`: (indices of the examples, their batch).

    With `pad` every stream has that length; one longer example is padded to the next multiple of 1,024.
    """
    for indices in split_by_budget(examples, max_tokens=max_tokens):
        inside = [examples[index] for index in indices]
        length = sum(example.num_tokens for example in inside)
        padded = max_tokens if length <= max_tokens else -(-length // _PAD_STEP) * _PAD_STEP
        yield indices, pack(inside, pad_to=padded if pad else 0)


def count_tokens(examples: Iterable[Tokens]) -> Counts:
    """What these conversations or documents will score; the first token of each has no predictor."""
    return Counts(likelihood_tokens=sum(sum(example.scored[1:]) for example in examples))
