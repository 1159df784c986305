"""How well a model keeps to the language it was asked in, and what else a reader sees: emoji, loops, cut-off answers.

Every reply is judged on its own (`judge`); metrics are averaged over the replies of one language (`summarise`) or, for
two models on the same prompts, as paired differences (`compare`). The line-level pass rate is the strict script form of
the Language Confusion Benchmark (Marchisio et al. 2024, arXiv 2406.20052): a reply passes when no line is in the wrong
language. Lines of every length count; code, formulas and quotations do not; an empty reply fails. English words inside
a Chinese line do not fail the line: they make the reply *mixed*, which is a rate of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hanlin.errors import DataError
from hanlin.evaluation.prompts import Prompt
from hanlin.evaluation.statistics import Estimate, mean, mean_difference, rate, rate_difference
from hanlin.text.language import (
    Evidence,
    License,
    emoji_in,
    evidence_by_line,
    han_license,
    latin_license,
    line_language,
    measure,
    strip_code,
    strip_uncounted,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's answer to one prompt. `ended`: it stopped by a stop token of its own, not at the length limit."""

    prompt: Prompt
    text: str
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to be said of one reply. `wrong_lines` and `foreign` are the evidence that a reader can check."""

    id: str
    expected: Literal["zh", "en"]
    passed: bool
    wrong: bool
    mixed: bool
    num_emoji: int
    ended: bool
    looping: bool
    num_characters: int
    wrong_lines: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number over replies: a rate (of `bool`) or a mean (of `float`); `better` says which way is good, if any."""

    english: str
    chinese: str
    value: Callable[[Judgement], float]
    is_rate: bool = True
    better: Literal["higher", "lower", ""] = "lower"


METRICS: dict[str, Metric] = {
    "pass": Metric(
        english="no line in the wrong language", chinese="逐行语言通过率", value=lambda of: of.passed, better="higher"
    ),
    "wrong": Metric(english="whole reply in the wrong language", chinese="整篇语言错误率", value=lambda of: of.wrong),
    "mixed": Metric(english="languages mixed", chinese="中英混杂率", value=lambda of: of.mixed),
    "emoji": Metric(english="with emoji", chinese="含表情符号率", value=lambda of: of.num_emoji > 0),
    "ended": Metric(english="ends by itself", chinese="自行结束率", value=lambda of: of.ended, better="higher"),
    "looping": Metric(english="repeats itself in a loop", chinese="循环重复率", value=lambda of: of.looping),
    "characters": Metric(
        english="characters", chinese="平均字符数", value=lambda of: of.num_characters, is_rate=False, better=""
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Estimates by language ("zh", "en"; only those that occur) and metric. `unjudged`: prompts that want neither."""

    estimates: dict[str, dict[str, Estimate]]
    unjudged: int = 0


def judge(reply: Reply) -> Judgement | None:
    """Judge one reply; None when its prompt does not say which language it wants."""
    expected = reply.prompt.language
    if expected == "":
        return None
    license = latin_license(reply.prompt.text) if expected == "zh" else han_license(reply.prompt.text)
    lines = list(evidence_by_line(strip_uncounted(reply.text), license))
    wrong_lines = tuple(line for line, evidence in lines if line_language(evidence) not in (expected, "none"))
    whole = measure(reply.text, license)
    wrong = whole.language not in (expected, "none")
    answered = any(char.isalnum() for char in reply.text)
    return Judgement(
        id=reply.prompt.id,
        expected=expected,
        passed=answered and not wrong and not wrong_lines,
        wrong=wrong,
        mixed=whole.mixed,
        num_emoji=_num_emoji(reply),
        ended=reply.ended and bool(reply.text.strip()),
        looping=is_looping(reply.text),
        num_characters=len(reply.text.strip()),
        wrong_lines=wrong_lines,
        foreign=_foreign(whole, lines, license=license) if whole.mixed else (),
    )


def _num_emoji(reply: Reply) -> int:
    """Pictographs outside code that the prompt did not use itself."""
    asked = set(emoji_in(reply.prompt.text))
    return sum(emoji not in asked for emoji in emoji_in(strip_code(reply.text)))


def _foreign(whole: Evidence, lines: list[tuple[str, Evidence]], *, license: License) -> tuple[str, ...]:
    if license.latin:
        return whole.runs
    return tuple(line for line, evidence in lines if evidence.han or evidence.stray)


_UNIT = re.compile(r"[\u3400-\u9fff\u3041-\u30fa\uac00-\ud7a3]|[^\W\d_\u3041-\u9fff\uac00-\ud7a3]{2,}")


def is_looping(text: str, *, repeats: int = 4, length: int = 32) -> bool:
    """Whether a text has fallen into a loop: a stretch of `length` units or more, one passage at least `repeats` times.

    A unit is a Han character or a word; digits, single letters and signs are passed over, so that a numbered list of
    one sentence is a loop and a table of numbers is none. Passages of up to 400 units are looked for.
    """
    units = _UNIT.findall(text)
    if len(units) < length:
        return False
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    ids = np.array([numbers[unit] for unit in units])
    for period in range(1, min(len(ids) // repeats, 400) + 1):
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        edges = np.concatenate(([-1], breaks, [len(ids) - period]))
        stretch = int(np.diff(edges).max()) - 1 + period
        if stretch >= max(length, repeats * period):
            return True
    return False


def summarise(replies: Sequence[Reply]) -> Summary:
    """Every metric with its 95% interval, Chinese and English apart."""
    judgements = [judge(reply) for reply in replies]
    estimates: dict[str, dict[str, Estimate]] = {}
    for language in ("zh", "en"):
        group = [one for one in judgements if one is not None and one.expected == language]
        if group:
            estimates[language] = {name: _estimate(metric, group) for name, metric in METRICS.items()}
    return Summary(estimates=estimates, unjudged=sum(one is None for one in judgements))


def compare(before: Sequence[Reply], after: Sequence[Reply]) -> Summary:
    """Paired differences, after - before, of two models' replies to the same prompts, in any order.

    Raises:
        DataError: the two do not answer the same prompts, once each.
    """
    old, new = _by_id(before), _by_id(after)
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())
        raise DataError(f"{len(odd)} prompts have a reply on one side only, such as {odd[0]!r}; use the same prompts")
    pairs = [(judge(old[id]), judge(new[id])) for id in old]
    estimates: dict[str, dict[str, Estimate]] = {}
    for language in ("zh", "en"):
        group = [(one, two) for one, two in pairs if one and two and one.expected == two.expected == language]
        if group:
            estimates[language] = {name: _difference(metric, group) for name, metric in METRICS.items()}
    return Summary(estimates=estimates, unjudged=sum(one is None or two is None for one, two in pairs))


def _by_id(replies: Sequence[Reply]) -> dict[str, Reply]:
    found = {reply.prompt.id: reply for reply in replies}
    if len(found) != len(replies):
        raise DataError(f"{len(replies)} replies to {len(found)} different prompts; give one reply to each")
    return found


def _estimate(metric: Metric, group: list[Judgement]) -> Estimate:
    values = [metric.value(one) for one in group]
    return rate([bool(value) for value in values]) if metric.is_rate else mean(values)


def _difference(metric: Metric, group: list[tuple[Judgement, Judgement]]) -> Estimate:
    old, new = [metric.value(one) for one, _ in group], [metric.value(two) for _, two in group]
    if metric.is_rate:
        return rate_difference([bool(value) for value in old], [bool(value) for value in new])
    return mean_difference(old, new)
