"""Preference pairs from weak feedback: what was said of several answers to one prompt, from all rows together.

Opinions of equal answers are added up; two answers make a pair when they are far enough apart and enough people were
asked. Of a prompt the pairs that are widest apart come first. Everything that makes no pair is counted by its reason.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hanlin.curation.conversion import LeftOut
from hanlin.curation.feedback import Opinion, Scale, read_feedback, value_of
from hanlin.curation.rows import value_of_row
from hanlin.curation.shards import Row, check_writable, read_rows, write_rows
from hanlin.data.forms import PAIR_FORMS
from hanlin.data.messages import BadRow
from hanlin.data.rows import read_row
from hanlin.errors import ConfigError, DataError
from hanlin.types import Message, Preference

Ties = Literal["drop", "shorter", "longer"]
TIES: tuple[Ties, ...] = ("drop", "shorter", "longer")


@dataclass(frozen=True, slots=True)
class PairRule:
    """What makes a pair.

    Attributes:
        margin: the least difference between the two values; any difference where it is 0.
        min_votes: that both answers need.
        ties: of two answers with the same value none is better ("drop"), or the shorter or the longer one is.
        max_pairs: of one prompt.
    """

    margin: float = 0.0
    min_votes: int = 1
    ties: Ties = "drop"
    max_pairs: int = 1

    def __post_init__(self) -> None:
        if self.margin < 0 or self.min_votes < 1 or self.max_pairs < 1:
            raise ConfigError("--margin should be 0 or more, --min-votes and --max-pairs 1 or more")


@dataclass(slots=True)
class Tally:
    """All that was said of one answer."""

    total: float = 0.0
    votes: int = 0


@dataclass(slots=True)
class Asked:
    """One prompt: its rows, and its answers in the order in which they came."""

    row: Row
    prompt: tuple[Message, ...]
    scale: Scale
    rows: list[str] = field(default_factory=list)
    answers: dict[str, Tally] = field(default_factory=dict)

    def value(self, answer: str) -> float:
        return value_of(self.scale, self.answers[answer].total, self.answers[answer].votes)


@dataclass(slots=True)
class Paired:
    """What became of the feedback. Reasons count rows that cannot be used, answers, prompts and pairs left out."""

    read: int = 0
    prompts: int = 0
    answers: int = 0
    written: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    set_aside: Path | None = None


def pair_files(files: Sequence[Path], output: Path, rule: PairRule) -> Paired:
    """Write the pairs of all rows, in our own form, with the values and votes that made them.

    Everything is held in memory, since the answers to a prompt may stand anywhere. Raises DataError where no pair
    can be made.
    """
    check_writable(output)
    done = Paired()
    prompts = _gathered(files, done)
    done.prompts, done.answers = len(prompts), sum(len(one.answers) for one in prompts)
    write_rows(output, _written(prompts, rule, done))
    if not done.written:
        output.unlink()
        raise DataError(f"{done.read:,} rows give no pair: {done.left_out.why(files)}")
    done.set_aside = done.left_out.write(output)
    return done


def _gathered(files: Sequence[Path], done: Paired) -> list[Asked]:
    prompts: dict[tuple[tuple[str, str], ...], Asked] = {}
    for row in read_rows(files):
        done.read += 1
        try:
            prompt, opinions = read_feedback(value_of_row(row))
            key = tuple((message.role, message.content) for message in prompt)
            asked = prompts.get(key) or Asked(row, prompt, opinions[0].scale)
            _add(asked, opinions, row)
        except BadRow as bad:
            done.left_out.add(row, bad.reason, str(bad))
        else:
            prompts[key] = asked
    return list(prompts.values())


def _add(asked: Asked, opinions: Sequence[Opinion], row: Row) -> None:
    """Add a row's opinions to its prompt, all or none. Raises BadRow."""
    if {opinion.scale for opinion in opinions} != {asked.scale}:
        raise BadRow("two kinds of feedback for one prompt", "scores, thumbs, ranks and preferences cannot be compared")
    answers = [opinion.answer.strip() for opinion in opinions]
    if asked.scale in ("rank", "preference") and asked.answers and set(answers) != set(asked.answers):
        raise BadRow("two rankings of different answers", "places among other answers cannot be compared")
    if asked.scale == "rank" and len(set(answers)) < len(answers):
        raise BadRow("an answer is ranked twice", "each answer has one place")
    for answer, opinion in zip(answers, opinions, strict=True):
        tally = asked.answers.setdefault(answer, Tally())
        tally.total += opinion.total
        tally.votes += opinion.votes
    asked.rows.append(row.place)


def _written(prompts: Sequence[Asked], rule: PairRule, done: Paired) -> Iterator[bytes]:
    for asked in prompts:
        pairs = choose_pairs(asked, rule, done.left_out)
        for number, (chosen, rejected) in enumerate(pairs, start=1):
            made = _pair_row(asked, chosen, rejected, number if len(pairs) > 1 else 0)
            try:
                read_row(made, asked.row.place)
            except BadRow as bad:
                done.left_out.add(asked.row, bad.reason, str(bad))
                continue
            done.written += 1
            yield json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace")


def choose_pairs(asked: Asked, rule: PairRule, left_out: LeftOut) -> list[tuple[str, str]]:
    """(chosen, rejected) of one prompt, the widest apart first; why there are no more goes to `left_out`."""
    judged = []
    for answer, tally in asked.answers.items():
        if not answer:
            left_out.add(asked.row, "an answer is empty")
        elif tally.votes < rule.min_votes:
            left_out.add(asked.row, "too few votes", f"{tally.votes} of {rule.min_votes} for {answer[:80]}")
        else:
            judged.append(answer)
    if len(judged) < 2:
        left_out.add(asked.row, "nothing to compare with: one answer or none")
        return []
    found, ties, close = [], 0, 0
    for index, one in enumerate(judged):
        for other in judged[index + 1 :]:
            gap = asked.value(one) - asked.value(other)
            if abs(gap) < 1e-9:
                if rule.ties == "drop" or len(one) == len(other):
                    ties += 1
                else:
                    found.append((0.0, *_by_length(one, other, rule.ties)))
            elif abs(gap) < rule.margin - 1e-9:
                close += 1
            else:
                found.append((abs(gap), one, other) if gap > 0 else (abs(gap), other, one))
    found.sort(key=lambda item: -item[0])
    for reason, count in (
        ("a tie", ties),
        ("closer than the margin", close),
        ("beyond --max-pairs", len(found) - rule.max_pairs),
    ):
        for _ in range(count):
            left_out.add(asked.row, f"a pair: {reason}")
    return [(chosen, rejected) for _, chosen, rejected in found[: rule.max_pairs]]


def _by_length(one: str, other: str, ties: Ties) -> tuple[str, str]:
    short, long = sorted((one, other), key=len)
    return (short, long) if ties == "shorter" else (long, short)


def _pair_row(asked: Asked, chosen: str, rejected: str, number: int) -> dict[str, Any]:
    own = asked.row.value.get("id")
    id = str(own) if isinstance(own, str | int) and not isinstance(own, bool) else asked.row.place
    pair = Preference(asked.prompt, chosen, rejected, id=f"{id}#{number}" if number else id)
    votes = {
        side: {"value": round(asked.value(answer), 4), "votes": asked.answers[answer].votes}
        for side, answer in (("chosen", chosen), ("rejected", rejected))
    }
    return {**PAIR_FORMS["hanlin"](pair), "feedback": {"scale": asked.scale, **votes}, "rows": asked.rows}
