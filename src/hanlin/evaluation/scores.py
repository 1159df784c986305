"""Held-out scores of any objective, before and after, as rows of a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hanlin.evaluation.pairs import pair_rows
from hanlin.evaluation.report import Row, mean_row, rate_row
from hanlin.evaluation.statistics import Estimate
from hanlin.objectives.distillation import DistillationScore
from hanlin.objectives.next_token import TextScore
from hanlin.objectives.policy import AnswerScore
from hanlin.objectives.reward import RewardScore
from hanlin.objectives.scores import PairScore


def score_rows(examples: Sequence[Any], before: Sequence[Any], after: Sequence[Any] | None = None) -> list[Row]:
    """Rows for examples scored once, or before and after in the same order; at least one."""
    return ROWS[type(before[0])](examples, before, after)


def text_rows(examples: Sequence[Any], before: Sequence[TextScore], after: Sequence[TextScore] | None) -> list[Row]:
    """Likelihood of held-out conversations or documents; each is one item, whatever its length."""
    old, new = [score.nll for score in before], None if after is None else [score.nll for score in after]
    nll = mean_row("texts.nll", ("NLL, per token", "每词元负对数似然"), before=old, after=new, better="lower")
    perplexity = replace(
        nll,
        key="texts.perplexity",
        english="perplexity, geometric mean",
        chinese="困惑度（几何平均）",
        before=_exponential(nll.before),
        after=None if nll.after is None else _exponential(nll.after),
        difference=None,
    )
    return [nll, perplexity]


def distillation_rows(
    examples: Sequence[Any], before: Sequence[DistillationScore], after: Sequence[DistillationScore] | None
) -> list[Row]:
    """How far a student's distributions are from its teacher's, and the likelihood; each text is one item."""
    old, new = [score.mean_divergence for score in before], None
    texts = [score.text for score in before], None
    if after is not None:
        new, texts = [score.mean_divergence for score in after], (texts[0], [score.text for score in after])
    names = ("divergence from the teacher, per token", "每词元与教师分布的散度")
    gap = mean_row("texts.divergence", names, before=old, after=new, better="lower")
    return [gap, *text_rows(examples, *texts)]


def reward_rows(
    examples: Sequence[Any], before: Sequence[RewardScore], after: Sequence[RewardScore] | None
) -> list[Row]:
    """How often, and by how much, a reward model puts the chosen answer first."""
    margins = [score.margin for score in before], None if after is None else [score.margin for score in after]
    right = [margin > 0 for margin in margins[0]], None if margins[1] is None else [one > 0 for one in margins[1]]
    return [
        rate_row("rewards.accuracy", ("pair accuracy", "成对准确率"), before=right[0], after=right[1], better="higher"),
        mean_row(
            "rewards.margin",
            ("margin, chosen - rejected", "优劣回答的奖励差"),
            before=margins[0],
            after=margins[1],
            better="higher",
        ),
    ]


def answer_rows(
    examples: Sequence[Any], before: Sequence[AnswerScore], after: Sequence[AnswerScore] | None
) -> list[Row]:
    """What sampled answers to held-out prompts are worth; each prompt is one item."""

    rewards = [score.reward for score in before], None if after is None else [score.reward for score in after]
    tokens = [score.tokens for score in before], None if after is None else [score.tokens for score in after]
    ended = [score.ended for score in before], None if after is None else [score.ended for score in after]
    return [
        mean_row("answers.reward", ("reward", "奖励"), before=rewards[0], after=rewards[1], better="higher"),
        mean_row("answers.tokens", ("tokens", "词元数"), before=tokens[0], after=tokens[1]),
        rate_row("answers.ended", ("not cut", "未截断"), before=ended[0], after=ended[1]),
    ]


def _exponential(estimate: Estimate) -> Estimate:
    """The interval's ends go with the value: the exponential is monotone."""
    return replace(
        estimate, value=math.exp(estimate.value), low=math.exp(estimate.low), high=math.exp(min(estimate.high, 700.0))
    )


ROWS: dict[type, Callable[..., list[Row]]] = {
    PairScore: pair_rows,
    TextScore: text_rows,
    DistillationScore: distillation_rows,
    RewardScore: reward_rows,
    AnswerScore: answer_rows,
}
