"""One prompt and several answers that a model gave to it: what reinforcement learning works on.

A `Prompt` waits for its answers; a `Group` has them. Packed, the prompt is stored once and every answer is a segment
that sees it: [prompt | answer 1 | answer 2 | ...]. That equals separate rows, gradients included.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hanlin.data.pack import Stream
from hanlin.types import Batch, Counts, Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt that waits for `num_answers` answers of at most `max_tokens` each, and the messages that it was
    made of. Its sizes are the largest that its group of answers can have.
    """

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    num_answers: int
    max_tokens: int
    id: str = ""

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """As of `Tokens`."""
        return (self.ids,)

    @property
    def num_tokens(self) -> int:
        return len(self.ids) + self.num_answers * self.max_tokens

    @property
    def num_logical_tokens(self) -> int:
        return self.num_answers * (len(self.ids) + self.max_tokens)

    @property
    def num_positions(self) -> int:
        """As of `Tokens`, with an answer of full length."""
        return len(self.ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and the answers that the model gave to it. An answer ends with its stop token unless it was cut.

    To learn from: each answer's advantage, and its log-probability under the model that gave it. Both are empty where
    nothing is known yet.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    advantages: tuple[float, ...] = ()
    logprobs: tuple[float, ...] = ()
    id: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens that the packed stream stores: the prompt once."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def num_logical_tokens(self) -> int:
        """Tokens of one separate row an answer."""
        return len(self.prompt) * len(self.answers) + sum(map(len, self.answers))


def pack_groups(groups: Sequence[Group], *, share: bool = True, pad_to: int = 0) -> Batch:
    """Pack prompts, each with its answers behind it; an answer is a span. `share=False` stores the prompt again for
    every answer: the slow form the laws compare with.
    """
    stream = Stream()
    advantages: list[float] = []
    logprobs: list[float] = []
    for group in groups:
        for answer, places in zip(group.answers, _lay_group(stream, group, share=share), strict=True):
            stream.score(places[:-1], answer)
        advantages += group.advantages
        logprobs += group.logprobs
    batch = stream.batch(groups, pad_to=pad_to)
    if not advantages:
        return batch
    return replace(batch, advantage_S=torch.tensor(advantages), old_S=torch.tensor(logprobs))


def pack_group_ends(groups: Sequence[Group], *, pad_to: int = 0) -> Batch:
    """The stream of `pack_groups`, read as in `pack_ends`: at the last token of each answer, one span each."""
    stream = Stream()
    for group in groups:
        for answer, places in zip(group.answers, _lay_group(stream, group, share=True), strict=True):
            stream.score(places[-1:], answer[-1:])
    return stream.batch(groups, pad_to=pad_to)


def by_answer(
    groups: Sequence[Group], packed: Iterable[tuple[list[int], Batch]], value_of: Callable[[Batch], Tensor]
) -> dict[int, list[float]]:
    """One number for each answer of each group that is packed: `value_of` gives them for the spans of a batch, [S]."""
    found: dict[int, list[float]] = {}
    for indices, batch in packed:
        values = iter(value_of(batch).tolist())
        found |= {index: [next(values) for _ in groups[index].answers] for index in indices}
    return found


def _lay_group(stream: Stream, group: Group, *, share: bool) -> list[list[int]]:
    """For each answer the positions of the prompt's last token and of its own."""
    length = len(group.prompt)
    start = stream.lay(group.prompt, position=0)
    places: list[list[int]] = []
    for answer in group.answers:
        if not share and places:
            start = stream.lay(group.prompt, position=0)
        own = stream.lay(answer, position=length, prefix=(start, length))
        places.append([start + length - 1, *range(own, own + len(answer))])
    return places


def count_groups(groups: Iterable[Group]) -> Counts:
    """What these groups will score."""
    answers = [answer for group in groups for answer in group.answers]
    return Counts(likelihood_tokens=sum(map(len, answers)), answers=len(answers))
