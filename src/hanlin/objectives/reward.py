"""A reward model learns to give the chosen answer the higher number (Bradley and Terry 1952; arXiv 2203.02155, eq. 1).

    loss = -log sigmoid( reward(chosen) - reward(rejected) ),   a mean over pairs

An answer's reward is read at its stop token. The batch comes from `data.pack.pack_ends`: the predictors are these
positions, one for each span.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hanlin.config import Section
from hanlin.models.reward import rewards
from hanlin.models.transformer import Transformer
from hanlin.objectives.contrast import reward_terms
from hanlin.objectives.likelihood import batch_hidden
from hanlin.types import Batch, Counts, Loss


class RewardConfig(Section):
    """A scalar head on the decoder, trained on preference pairs."""

    kind: Literal["reward"]


@dataclass(frozen=True, slots=True)
class RewardScore:
    """Of one pair: the reward of each answer."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


def reward(model: Transformer, batch: Batch, counts: Counts) -> Loss:
    """Bradley-Terry's partial loss of one batch, divided by the step's `counts`."""
    chosen_P, rejected_P = _pair_rewards(model, batch)
    loss = -F.logsigmoid(chosen_P - rejected_P).sum() / counts.pairs
    return Loss(loss, reward_terms(chosen_P.detach(), rejected_P.detach(), counts))


def _pair_rewards(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    reward_S = rewards(model, batch_hidden(model, batch).index_select(0, batch.predictor_N))
    return reward_S[batch.chosen_P], reward_S[batch.rejected_P]


@torch.no_grad()
def score_rewards(model: Transformer, packed: Iterable[tuple[list[int], Batch]]) -> list[RewardScore]:
    """Rewards of all pairs in the order of their indices."""
    scores: dict[int, RewardScore] = {}
    for indices, batch in packed:
        chosen_P, rejected_P = _pair_rewards(model, batch.to(model.device))
        rows = zip(indices, chosen_P.tolist(), rejected_P.tolist(), strict=True)
        scores |= {index: RewardScore(chosen, rejected) for index, chosen, rejected in rows}
    return [scores[index] for index in sorted(scores)]


def reward_metrics(scores: Sequence[RewardScore]) -> dict[str, float]:
    """For the log: share of pairs in the right order, and mean rewards."""
    return {
        "eval_rewards/accuracies": fmean(score.margin > 0 for score in scores),
        "eval_rewards/margins": fmean(score.margin for score in scores),
        "eval_rewards/chosen": fmean(score.chosen for score in scores),
        "eval_rewards/rejected": fmean(score.rejected for score in scores),
    }
