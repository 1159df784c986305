"""Encoded pairs that fit a length limit, and a report of every pair that was dropped or shortened to get there.

The limit holds for each row of a pair, prompt and longer answer: P + max(C, R) tokens. An answer is never cut, so it
never loses its stop token (LLaMA-Factory cuts it off, and its models then do not stop; TRL's ORPO cuts both answers to
a wrong length: trl #6588). What `truncate_prompt` cuts is chosen as a reader would: first whole exchanges, oldest
first, behind the system text; then, if the last question alone is too long, the middle of that question, because
instructions stand at either end of it. Both answers keep the same prompt. Surprising: where a family has no system
role (Gemma), the system text is part of the first user turn and goes with it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from hanlin.errors import DataError
from hanlin.types import EncodedPair, Tokens

if TYPE_CHECKING:  # torch comes with it
    from hanlin.data.groups import Prompt

NUM_EXAMPLES = 5  # pairs named for each reason
TOO_LONG = "too long"
ANSWER_TOO_LONG = "answer too long"
SYSTEM_TOO_LONG = "system text too long"
EQUAL = "equal answers"
EMPTY = "empty answer"
SHORTENED = "prompt shortened"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFrame:
    """The tokens around a prompt's content, which are never cut.

    `start` counts those before the first turn's content (BOS and the turn's header), `end` those after the last user
    turn's content (its end and the assistant's header). `turn` is the control id that opens every turn, None where
    there is none: then the whole prompt counts as one turn. `header` counts a user turn's tokens from `turn` to its
    content.
    """

    start: int
    end: int
    turn: int | None = None
    header: int = 0

    @classmethod
    def between(cls, one: Sequence[int], other: Sequence[int], *, turn: int | None) -> "PromptFrame":
        """Read off two encoded one-turn prompts that differ in their content only, as "a" and "b" do."""
        start = _common(one, other)
        end = _common(one[start:][::-1], other[start:][::-1])
        opening = one[:start]
        header = opening[::-1].index(turn) + 1 if turn is not None and turn in opening else 0
        return cls(start=start, end=end, turn=turn if header else None, header=header)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """How some lengths are spread, in tokens: each value is one that occurs (nearest rank)."""

    minimum: int
    median: int
    p90: int
    p99: int
    maximum: int
    mean: float

    @classmethod
    def of(cls, values: Sequence[int]) -> "Quantiles":
        """Of at least one value."""
        ranked = sorted(values)

        def at(share: float) -> int:
            return ranked[min(len(ranked) - 1, int(share * len(ranked)))]

        return cls(ranked[0], at(0.5), at(0.9), at(0.99), ranked[-1], sum(ranked) / len(ranked))


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReport:
    """What fitting did to `pairs` pairs: `kept`, `dropped` by reason, `shortened` prompts and the tokens these lost.

    `examples` names the first few pairs of each reason. `lengths` spreads "prompt", "chosen", "rejected" and "row"
    (P + max(C, R)) as they came, before anything was cut; `histogram` counts rows by length as (upper bound, count),
    bounds doubling. Both are empty without pairs. Of conversations (`noun`) "row" and "scored" are spread.
    """

    max_length: int
    pairs: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    shortened: int = 0
    cut_tokens: int = 0
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lengths: dict[str, Quantiles] = field(default_factory=dict)
    histogram: tuple[tuple[int, int], ...] = ()
    noun: str = "pairs"

    def lines(self) -> list[str]:
        """The report for people: totals, a line for each reason with its first examples."""
        dropped = f"{self.pairs - self.kept} dropped (max_length = {self.max_length})"
        lines = [f"{self.pairs} {self.noun}: {self.kept} kept, {dropped}"]
        for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1]):
            lines.append(f"  {count} × {reason}: {', '.join(self.examples[reason])}")
        if self.shortened:
            where = ", ".join(self.examples[SHORTENED])
            lines.append(f"  {self.shortened} × {SHORTENED}, {self.cut_tokens} tokens cut: {where}")
        return lines


class _Tally:
    """Counts and first examples by reason."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.examples.setdefault(reason, [])
        if len(named) < NUM_EXAMPLES:
            named.append(example)


def fit_lengths(
    pairs: Iterable[EncodedPair],
    *,
    max_length: int,
    on_long: Literal["drop", "truncate_prompt", "error"],
    frame: PromptFrame | None = None,
) -> tuple[list[EncodedPair], LengthReport]:
    """The pairs whose rows have at most `max_length` tokens, in order, and what became of the others.

    Pairs with an empty answer (a stop token alone) or equal answers are dropped whatever the policy. "truncate_prompt"
    needs the `frame` of the family's prompts. Raises DataError for the first long pair if `on_long` is "error", and
    when there were pairs and none is left.
    """
    if on_long == "truncate_prompt" and frame is None:
        raise TypeError("truncate_prompt needs a PromptFrame: without it a turn's header could be cut")
    kept: list[EncodedPair] = []
    tally = _Tally()
    lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": [], "row": []}
    cut_tokens = 0
    for pair in pairs:
        for name, value in zip(lengths, _lengths(pair), strict=True):
            lengths[name].append(value)
        fitted, reason = _fit(pair, max_length, on_long, frame)
        if fitted is None:
            tally.add(reason, f"{pair.id} ({lengths['row'][-1]})")
            continue
        kept.append(fitted)
        if cut := len(pair.prompt) - len(fitted.prompt):
            cut_tokens += cut
            tally.add(SHORTENED, f"{pair.id} ({len(pair.prompt)} → {len(fitted.prompt)})")
    return kept, _report(tally, lengths, max_length=max_length, kept=len(kept), cut=cut_tokens)


def fit_tokens(
    examples: Iterable[Tokens],
    *,
    max_length: int,
    on_long: Literal["drop", "truncate_prompt", "error"],
    frame: PromptFrame | None = None,
) -> tuple[list[Tokens], LengthReport]:
    """As `fit_lengths`, for conversations: what can be cut is everything before the first scored token."""
    kept: list[Tokens] = []
    tally = _Tally()
    lengths: dict[str, list[int]] = {"row": [], "scored": []}
    cut_tokens = 0
    for example in examples:
        lengths["row"].append(len(example.ids))
        lengths["scored"].append(sum(example.scored))
        fitted, reason = _fit_tokens(example, max_length, on_long, frame)
        if fitted is None:
            tally.add(reason, f"{example.id} ({len(example.ids)})")
            continue
        kept.append(fitted)
        if cut := len(example.ids) - len(fitted.ids):
            cut_tokens += cut
            tally.add(SHORTENED, f"{example.id} ({len(example.ids)} → {len(fitted.ids)})")
    return kept, _report(tally, lengths, max_length=max_length, kept=len(kept), cut=cut_tokens, noun="conversations")


def fit_prompts(
    prompts: "Sequence[Prompt]", *, max_length: int, on_long: Literal["drop", "error"]
) -> "tuple[list[Prompt], LengthReport]":
    """The prompts that leave room for an answer within `max_length` tokens. Raises DataError as `fit_lengths`."""
    kept: list[Prompt] = []
    tally = _Tally()
    for prompt in prompts:
        length = len(prompt.ids) + prompt.max_tokens
        if length <= max_length:
            kept.append(prompt)
            continue
        if on_long == "error":
            raise DataError(
                f"prompt {prompt.id} has {len(prompt.ids)} tokens and answers up to {prompt.max_tokens}, more than "
                f'max_length = {max_length}; raise it, or set on_long = "drop"'
            )
        tally.add(TOO_LONG, f"{prompt.id} ({length} with the answer)")
    lengths = {"row": [len(prompt.ids) + prompt.max_tokens for prompt in prompts]}
    return kept, _report(tally, lengths, max_length=max_length, kept=len(kept), cut=0, noun="prompts")


def _report(
    tally: _Tally, lengths: dict[str, list[int]], *, max_length: int, kept: int, cut: int, noun: str = "pairs"
) -> LengthReport:
    """The report; raises DataError when there was something and nothing is left."""
    shortened = tally.counts.pop(SHORTENED, 0)
    report = LengthReport(
        max_length=max_length,
        pairs=len(lengths["row"]),
        kept=kept,
        dropped=tally.counts,
        shortened=shortened,
        cut_tokens=cut,
        examples={reason: tuple(named) for reason, named in tally.examples.items()},
        lengths={name: Quantiles.of(values) for name, values in lengths.items() if values},
        histogram=_histogram(lengths["row"]),
        noun=noun,
    )
    if report.pairs and not kept:
        why = "; ".join(line.strip() for line in report.lines())
        raise DataError(f"no {noun[:-1]} is left of {why}; raise max_length or mend the data")
    return report


def _fit_tokens(example: Tokens, max_length: int, on_long: str, frame: PromptFrame | None) -> tuple[Tokens | None, str]:
    """The conversation as it may stay, or None and the reason why it may not."""
    length = len(example.ids)
    if length <= max_length:
        return example, ""
    if on_long == "error":
        raise DataError(
            f"conversation {example.id} has {length} tokens, more than max_length = {max_length}; raise it, or set "
            'on_long = "drop" or "truncate_prompt"'
        )
    if on_long == "drop" or frame is None:
        return None, TOO_LONG
    first = example.scored.index(True)
    rest = length - first
    shorter = _shorten(example.ids[:first], max_length - rest, frame)
    if shorter is not None:
        unscored = (False,) * len(shorter)
        return replace(example, ids=shorter + example.ids[first:], scored=unscored + example.scored[first:]), ""
    return None, SYSTEM_TOO_LONG if frame.start + frame.end + 1 + rest <= max_length else ANSWER_TOO_LONG


def _lengths(pair: EncodedPair) -> tuple[int, int, int, int]:
    prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    return prompt, chosen, rejected, prompt + max(chosen, rejected)


def _fit(pair: EncodedPair, max_length: int, on_long: str, frame: PromptFrame | None) -> tuple[EncodedPair | None, str]:
    """The pair as it may stay, or None and the reason why it may not."""
    prompt, chosen, rejected, length = _lengths(pair)
    if min(chosen, rejected) <= 1:
        return None, EMPTY
    if pair.chosen == pair.rejected:
        return None, EQUAL
    if length <= max_length:
        return pair, ""
    longer = length - prompt
    if on_long == "error":
        raise DataError(
            f"pair {pair.id} has {length} tokens (prompt {prompt}, longer answer {longer}), more than "
            f'max_length = {max_length}; raise it, or set on_long = "drop" or "truncate_prompt"'
        )
    if on_long == "drop" or frame is None:
        return None, TOO_LONG
    shorter = _shorten(pair.prompt, max_length - longer, frame)
    if shorter is not None:
        return replace(pair, prompt=shorter), ""
    return None, SYSTEM_TOO_LONG if frame.start + frame.end + 1 + longer <= max_length else ANSWER_TOO_LONG


def _histogram(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Counts under doubling upper bounds (64, 128, …; inclusive), up to the longest."""
    bars: list[tuple[int, int]] = []
    low, high = -1, 64
    while values and low < max(values):
        bars.append((high, sum(low < value <= high for value in values)))
        low, high = high, 2 * high
    return tuple(bars)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shorten(prompt: tuple[int, ...], room: int, frame: PromptFrame) -> tuple[int, ...] | None:
    """The prompt in at most `room` tokens, or None where not even one token of the last question would be left."""
    turns = [index for index, id in enumerate(prompt) if id == frame.turn] if frame.turn is not None else []
    if len(turns) < 2:
        return _cut_middle(prompt, frame.start, len(prompt) - frame.end, room)
    # The last turn is the assistant's header. User and assistant alternate before it, so an even number of turns means
    # that the first is the system's.
    *spoken, _ = turns
    first = 1 - len(spoken) % 2
    system, shorter = prompt[: spoken[first]], prompt
    for start in spoken[first::2]:
        shorter = system + prompt[start:]
        if len(shorter) <= room:
            return shorter
    return _cut_middle(shorter, len(system) + frame.header, len(shorter) - frame.end, room)


def _cut_middle(prompt: tuple[int, ...], start: int, stop: int, room: int) -> tuple[int, ...] | None:
    """The prompt in `room` tokens, less the middle of prompt[start:stop]; None if nothing of that would be left."""
    left = room - start - (len(prompt) - stop)
    if left < 1:
        return None
    return prompt[: start + (left + 1) // 2] + prompt[stop - left // 2 :]
