"""ORPO (arXiv 2403.07691): likelihood of the chosen answer plus a weighted odds ratio between the two answers. No
reference model.

    loss = NLL + weight * -log sigmoid( logodds(chosen) - logodds(rejected) ),   logodds(y) = l - log(1 - exp(l))
    (eqs. 4, 6, 7)

with l the mean log-probability of an answer's tokens, its stop token included. Different objectives carry this one
name; the presets are the two in use. `llamafactory`: NLL over the answer, mean per sequence, then over pairs (what both
Chinese-Chat models were trained with, and the paper's equations). `trl`: NLL over prompt and answer, mean over all
tokens of the step (near the authors' code). A weight does not carry over from one to the other.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hanlin.config import Section
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.types import Batch, Counts, Loss

PRESETS: dict[str, tuple[str, str]] = {"llamafactory": ("answer", "sequence"), "trl": ("prompt_and_answer", "token")}
CLOSEST_TO_ZERO = -1e-6  # mean log-probabilities are clamped here: at 0 the odds, and their gradient, are infinite


class OrpoConfig(Section):
    """`weight` is the articles' beta (LLaMA-Factory, TRL) or lambda (paper). `nll_on` and `nll_reduction` override the
    preset.
    """

    kind: Literal["orpo"] = "orpo"
    preset: Literal["llamafactory", "trl"] = "llamafactory"
    weight: float = Field(default=0.1, ge=0)
    nll_on: Literal["answer", "prompt_and_answer"] | None = None
    nll_reduction: Literal["sequence", "token"] | None = None

    @property
    def scores_prompt(self) -> bool:
        return (self.nll_on or PRESETS[self.preset][0]) == "prompt_and_answer"

    @property
    def per_sequence(self) -> bool:
        return (self.nll_reduction or PRESETS[self.preset][1]) == "sequence"


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it (Mächler 2012, eq. 7)."""
    near = x > -math.log(2)
    # Each branch is fed a harmless value where the other one is taken, so that no infinity reaches the backward pass.
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean_logp), fp32; values above -1e-6 are clamped and get no gradient."""
    clamped = mean_logp.clamp(max=CLOSEST_TO_ZERO)
    return clamped - log1mexp(clamped)


def orpo(model: Transformer, batch: Batch, counts: Counts, *, config: OrpoConfig) -> Loss:
    """ORPO's partial loss of one batch: sums over its pairs and tokens, divided by the whole step's `counts`."""
    return orpo_from_logprobs(batch_logprobs(model, batch), batch, counts, config=config)


def orpo_from_logprobs(logp_N: Tensor, batch: Batch, counts: Counts, *, config: OrpoConfig) -> Loss:
    """The arithmetic of ORPO on token log-probabilities [N]; metric names are TRL's, so that dashboards carry over."""
    sum_S, tokens_S = span_sums(logp_N, batch)
    mean_S = sum_S / tokens_S.clamp(min=1)
    chosen_P, rejected_P = mean_S[batch.chosen_P], mean_S[batch.rejected_P]
    difference_P = log_odds(chosen_P) - log_odds(rejected_P)
    agreement = F.logsigmoid(difference_P).sum() / counts.pairs
    scored_P = torch.cat((batch.chosen_P, batch.prompt_P)) if config.scores_prompt else batch.chosen_P
    if config.per_sequence:
        nll = -_sequence_means(sum_S, tokens_S, batch, config).sum() / counts.pairs
    else:
        nll = -sum_S[scored_P].sum() / counts.likelihood_tokens
    with torch.no_grad():
        terms = {
            "nll_loss": nll.detach(),
            "log_odds_ratio": agreement.detach(),
            "log_odds_chosen": difference_P.sum() / counts.pairs,
            "rewards/chosen": config.weight * chosen_P.sum() / counts.pairs,
            "rewards/rejected": config.weight * rejected_P.sum() / counts.pairs,
            "rewards/accuracies": (chosen_P > rejected_P).float().sum() / counts.pairs,
            "rewards/margins": config.weight * (chosen_P - rejected_P).sum() / counts.pairs,
            "logps/chosen": chosen_P.sum() / counts.pairs,
            "logps/rejected": rejected_P.sum() / counts.pairs,
        }
    return Loss(nll - config.weight * agreement, terms)


def _sequence_means(sum_S: Tensor, tokens_S: Tensor, batch: Batch, config: OrpoConfig) -> Tensor:
    """Mean log-probability [P] of each chosen sequence, its prompt included where the likelihood covers it."""
    sum_P, tokens_P = sum_S[batch.chosen_P], tokens_S[batch.chosen_P]
    if config.scores_prompt:
        sum_P, tokens_P = sum_P + sum_S[batch.prompt_P], tokens_P + tokens_S[batch.prompt_P]
    return sum_P / tokens_P
