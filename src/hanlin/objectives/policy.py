"""RLHF: REINFORCE on answers that the model itself has just given, with a leave-one-out baseline and a price on leaving
the starting model.

    R_i  = r(x, y_i) - beta * (log p(y_i | x) - log p0(y_i | x))          the reward of answer i of G, and what it costs
    A_i  = R_i - mean of R_j, j ≠ i                                       its advantage: they sum to 0 in every group
    loss = - mean over all answers of the step of  A_i * log p(y_i | x)   R and A are numbers: no gradient through them

p is the policy, p0 the model that the run started from; an answer is one action, its log-probability the sum over its
tokens, stop included. This is RLOO (Ahmadian et al., "Back to Basics", arXiv 2402.14740), whose one-sample estimate of
the KL divergence is part of the reward, as in TRL's RLOOTrainer. Gemma's report (arXiv 2403.08295, on reinforcement
learning from human feedback) describes its own way as a variant of REINFORCE with KL regularisation towards the
starting model.

With `clip` the loss is PPO's (arXiv 1707.06347, eq. 7) on whole answers, as in TRL:
- min(q A, clip(q, 1 - clip, 1 + clip) A), q = p(y) / p_old(y) against the model that gave the answer. Then several
updates may learn from the same answers. At the first of them q is 1, and the gradient is that of the loss above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hanlin.config import Section
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.types import Batch, Counts, Loss


class RlhfConfig(Section):
    """Reinforcement learning on the model's own answers. `beta` and `clip` are in nats and ratios of whole answers."""

    kind: Literal["rlhf"]
    rewards: tuple[str, ...] = Field(min_length=1)
    """Each a built-in ("chinese", "language"), a Python function "module:function", which is given the prompt's
    messages and the answer's text and returns a number, or the directory of a reward model.
    """
    weights: tuple[float, ...] = ()
    """Of the rewards in their sum; left out, all are 1."""
    answers: int = Field(default=4, ge=2)
    """G: answers to each prompt. The paper compares 2 and 4."""
    max_tokens: int = Field(default=128, gt=0)
    """Tokens of an answer, stop included; a longer one is cut."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling. Anything but 1 samples from another distribution than the one whose log-probabilities are learnt."""
    beta: float = Field(default=0.05, ge=0)
    """Price of a nat of KL divergence from the starting model; TRL's default."""
    cut_penalty: float = Field(default=0.0, ge=0)
    """Taken from the reward of an answer that was cut at `max_tokens`."""
    clip: float | None = Field(default=None, gt=0, lt=1)
    """PPO's clipping of the ratio; 0.2 is usual."""
    updates: int = Field(default=1, gt=0)
    """Optimizer updates on the same answers; more than 1 need `clip`."""
    kl_limit: float = Field(default=50.0, gt=0)
    """The run stops when answers are on average so many nats away from the starting model."""
    cut_limit: float = Field(default=0.95, gt=0, le=1)
    """The run stops when more than this share of a step's answers was cut; 1 is never."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights and len(self.weights) != len(self.rewards):
            raise ValueError(f"objective.weights has {len(self.weights)} numbers for {len(self.rewards)} rewards")
        if self.updates > 1 and self.clip is None:
            raise ValueError(
                f"objective.updates = {self.updates} would learn from answers of an older model without a bound: give "
                "objective.clip, 0.2 for example"
            )
        return self

    @property
    def weight_values(self) -> tuple[float, ...]:
        """The weights, or what stands for them."""
        return self.weights or (1.0,) * len(self.rewards)


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Of one held-out prompt: the reward of an answer to it, the answer's tokens, and whether it ended by itself."""

    reward: float
    tokens: int
    ended: bool


def advantages(reward_G: Sequence[float]) -> tuple[float, ...]:
    """How much better each answer of one group is than the mean of the others: G / (G - 1) times its distance from
    the mean of all.
    """
    number, mean = len(reward_G), fmean(reward_G)
    return tuple((reward - mean) * number / (number - 1) for reward in reward_G)


def reinforce(model: Transformer, batch: Batch, counts: Counts, *, config: RlhfConfig) -> Loss:
    """The partial loss of one batch of groups, divided by the step's `counts`."""
    return reinforce_from_logprobs(batch_logprobs(model, batch), batch, counts, config=config)


def reinforce_from_logprobs(logp_N: Tensor, batch: Batch, counts: Counts, *, config: RlhfConfig) -> Loss:
    """The arithmetic on token log-probabilities [N]. `entropy` is estimated from the answers' own tokens: minus the
    mean of their log-probabilities.
    """
    sum_S, _ = span_sums(logp_N, batch)
    assert batch.advantage_S is not None
    assert batch.old_S is not None
    terms = {"entropy": -logp_N.detach().sum() / counts.likelihood_tokens}
    if config.clip is None:
        return Loss(-(batch.advantage_S * sum_S).sum() / counts.answers, terms)
    ratio_S = (sum_S - batch.old_S).exp()
    clipped_S = ratio_S.clamp(1 - config.clip, 1 + config.clip)
    gain_S, clipped_gain_S = ratio_S * batch.advantage_S, clipped_S * batch.advantage_S
    terms["clip_ratio/region_mean"] = (clipped_gain_S < gain_S).float().sum() / counts.answers
    return Loss(-torch.minimum(gain_S, clipped_gain_S).sum() / counts.answers, terms)


def answer_metrics(scores: Sequence[AnswerScore]) -> dict[str, float]:
    """For the log: means over held-out prompts under TRL's names."""
    return {
        "eval_reward": fmean(score.reward for score in scores),
        "eval_completions/mean_length": fmean(score.tokens for score in scores),
        "eval_completions/clipped_ratio": fmean(not score.ended for score in scores),
    }
