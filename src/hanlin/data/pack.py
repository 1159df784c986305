"""Packing: encoded examples become one flat `Batch` in which nothing is padded and each prompt is stored once.

A pair is laid out `[prompt, common start | rest of chosen | rest of rejected]`. The common start of the two answers is
stored once and scored twice, once for each answer; the last stored-once position predicts two different tokens. That is
exact for a causal model and is tested, gradients included, against two separate padded rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from hanlin.data.budget import split_by_budget as split_by_budget
from hanlin.data.budget import streams
from hanlin.types import Batch, Counts, EncodedPair, Example, Segment, Tokens

_PAD_SEGMENT = 128  # short, because attention costs the square of a segment's length


class Stream:
    """The growing lists of one batch."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.spans: list[int] = []
        self.num_spans = 0

    def lay(self, ids: Sequence[int], *, position: int, prefix: tuple[int, int] = (0, 0)) -> int:
        """Append a run of tokens as one segment; return where it starts in the stream."""
        start = len(self.tokens)
        if ids:
            self.tokens.extend(ids)
            self.positions.extend(range(position, position + len(ids)))
            self.segments.append(Segment(start, len(ids), *prefix))
        return start

    def score(self, predictors: Iterable[int], targets: Sequence[int]) -> int:
        """Score `targets`, each predicted at its stream position, as one span; return the span's number."""
        self.predictors.extend(predictors)
        self.targets.extend(targets)
        self.spans.extend([self.num_spans] * len(targets))
        self.num_spans += 1
        return self.num_spans - 1

    def batch(
        self,
        examples: Sequence[Example],
        *,
        pad_to: int,
        chosen: Sequence[int] = (),
        rejected: Sequence[int] = (),
        prompt: Sequence[int] = (),
    ) -> Batch:
        """The finished batch, filled up to `pad_to` tokens; `chosen`, `rejected` and `prompt` number spans of pairs."""
        while len(self.tokens) < pad_to:
            self.lay([0] * min(_PAD_SEGMENT, pad_to - len(self.tokens)), position=0)

        def index(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64)

        return Batch(
            tokens_T=index(self.tokens),
            positions_T=index(self.positions),
            segments=tuple(self.segments),
            predictor_N=index(self.predictors),
            target_N=index(self.targets),
            span_N=index(self.spans),
            num_spans=self.num_spans,
            chosen_P=index(chosen),
            rejected_P=index(rejected),
            prompt_P=index(prompt),
            ids_P=tuple(example.id for example in examples),
            num_logical_tokens=sum(example.num_logical_tokens for example in examples),
        )


def pack_pairs(
    pairs: Sequence[EncodedPair], *, score_prompt: bool = False, share: bool = True, pad_to: int = 0
) -> Batch:
    """Pack whole pairs into one stream of sum(P + C + R - shared) tokens.

    `score_prompt` also scores the prompt's tokens (all but the first) in a span of their own, for likelihood terms that
    cover the prompt. `share=False` lays every pair out as two independent sequences: the slow form the laws compare
    with. A shorter stream is filled up to `pad_to` tokens that nothing sees and nobody scores, for compiled models.
    """
    stream = Stream()
    spans: dict[str, list[int]] = {"chosen": [], "rejected": [], "prompt": []}
    reference: list[float] = []
    for pair in pairs:
        start, chosen, rejected = _lay_pair(stream, pair, share=share)
        if score_prompt:
            spans["prompt"].append(stream.score(range(start, start + len(pair.prompt) - 1), pair.prompt[1:]))
        spans["chosen"].append(stream.score(chosen[:-1], pair.chosen))
        spans["rejected"].append(stream.score(rejected[:-1], pair.rejected))
        reference += pair.reference or ()
    batch = stream.batch(pairs, pad_to=pad_to, **spans)
    return replace(batch, reference_S=torch.tensor(reference)) if reference else batch


def pack_ends(pairs: Sequence[EncodedPair], *, share: bool = True, pad_to: int = 0) -> Batch:
    """The stream of `pack_pairs`, in which only the last token of each answer is read (a reward model's place): the
    predictor of a span is that token's own position, and its target the token itself.
    """
    stream = Stream()
    chosen, rejected = [], []
    for pair in pairs:
        _, *places = _lay_pair(stream, pair, share=share)
        chosen.append(stream.score(places[0][-1:], pair.chosen[-1:]))
        rejected.append(stream.score(places[1][-1:], pair.rejected[-1:]))
    return stream.batch(pairs, chosen=chosen, rejected=rejected, pad_to=pad_to)


def pack_tokens(examples: Sequence[Tokens], *, pad_to: int = 0) -> Batch:
    """Pack conversations or documents, a segment without prefix and a span each. The first token has no predictor."""
    stream = Stream()
    for example in examples:
        start = stream.lay(example.ids, position=0)
        places = [place for place, scored in enumerate(example.scored) if scored and place]
        stream.score([start + place - 1 for place in places], [example.ids[place] for place in places])
    return stream.batch(examples, pad_to=pad_to)


def _lay_pair(stream: Stream, pair: EncodedPair, *, share: bool) -> tuple[int, list[int], list[int]]:
    """Where the pair's prompt starts, and for each answer the positions of the prompt's last token and of its own."""
    shared = pair.shared if share else 0
    stem = pair.prompt + pair.chosen[:shared]
    first = start = stream.lay(stem, position=0)
    places: list[list[int]] = []
    for answer in (pair.chosen, pair.rejected):
        if not share and places:
            start = stream.lay(stem, position=0)
        own = stream.lay(answer[shared:], position=len(stem), prefix=(start, len(stem)))
        # The stem from the prompt's last token on predicts the common start and, last, this answer's first own token.
        places.append(
            [*range(start + len(pair.prompt) - 1, start + len(stem)), *range(own, own + len(answer) - shared)]
        )
    return first, places[0], places[1]


def count_pairs(pairs: Iterable[EncodedPair], *, score_prompt: bool = False) -> Counts:
    """What these pairs will score, from lengths alone."""
    pairs = list(pairs)
    prompt_tokens = sum(len(pair.prompt) - 1 for pair in pairs) if score_prompt else 0
    return Counts(pairs=len(pairs), likelihood_tokens=prompt_tokens + sum(len(pair.chosen) for pair in pairs))


def pack_all(
    pairs: Sequence[EncodedPair], *, max_tokens: int, score_prompt: bool = False, pad: bool = False
) -> Iterator[tuple[list[int], Batch]]:
    """Every pair once, in streams of at most `max_tokens`: (their indices, their batch)."""
    return streams(pairs, partial(pack_pairs, score_prompt=score_prompt), max_tokens=max_tokens, pad=pad)
