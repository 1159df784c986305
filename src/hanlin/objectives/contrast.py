"""DPO and SimPO: a logistic loss on how much better the chosen answer is than the rejected one.

    DPO    (arXiv 2305.18290, eq. 7)  -log sigmoid( beta * ((c - c0) - (r - r0)) )
    SimPO  (arXiv 2405.14734, eq. 6)  -log sigmoid( beta * (c / |c| - r / |r|) - gamma )

c and r are the log-probabilities of chosen and rejected, stop token included; c0 and r0 those under the starting model,
which is computed once, before the first step, and kept with the pairs (8 bytes a pair instead of a second model). Both
are means over pairs; neither has a likelihood term.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hanlin.config import Section
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.types import Batch, Counts, EncodedPair, Loss


class DpoConfig(Section):
    """Direct preference optimization against the starting model. `beta` as in the paper's experiments."""

    kind: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0)


class SimpoConfig(Section):
    """Preference optimization without a reference. `gamma_ratio` is gamma / beta; defaults of the authors' code
    (princeton-nlp/SimPO, scripts/simpo_config.py).
    """

    kind: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    gamma_ratio: float = Field(default=0.25, ge=0)


def dpo(model: Transformer, batch: Batch, counts: Counts, *, config: DpoConfig) -> Loss:
    """DPO's partial loss of one batch, divided by the step's `counts`; the pairs carry their reference."""
    return dpo_from_logprobs(batch_logprobs(model, batch), batch, counts, config=config)


def dpo_from_logprobs(logp_N: Tensor, batch: Batch, counts: Counts, *, config: DpoConfig) -> Loss:
    """The arithmetic of DPO on token log-probabilities [N]; metric names and values are TRL's."""
    sum_S, _ = span_sums(logp_N, batch)
    assert batch.reference_S is not None
    gain_S = config.beta * (sum_S - batch.reference_S)
    return _contrast(gain_S, sum_S, 0.0, batch, counts)


def simpo(model: Transformer, batch: Batch, counts: Counts, *, config: SimpoConfig) -> Loss:
    """SimPO's partial loss of one batch, divided by the step's `counts`."""
    return simpo_from_logprobs(batch_logprobs(model, batch), batch, counts, config=config)


def simpo_from_logprobs(logp_N: Tensor, batch: Batch, counts: Counts, *, config: SimpoConfig) -> Loss:
    """The arithmetic of SimPO on token log-probabilities [N]; metric names and values are TRL's (its CPO trainer)."""
    sum_S, tokens_S = span_sums(logp_N, batch)
    mean_S = sum_S / tokens_S
    return _contrast(config.beta * mean_S, mean_S, config.beta * config.gamma_ratio, batch, counts)


def _contrast(reward_S: Tensor, logp_S: Tensor, margin: float, batch: Batch, counts: Counts) -> Loss:
    chosen_P, rejected_P = reward_S[batch.chosen_P], reward_S[batch.rejected_P]
    loss = -F.logsigmoid(chosen_P - rejected_P - margin).sum() / counts.pairs
    with torch.no_grad():
        terms = reward_terms(chosen_P, rejected_P, counts)
        for name, spans_P in (("chosen", batch.chosen_P), ("rejected", batch.rejected_P)):
            terms[f"logps/{name}"] = logp_S[spans_P].sum() / counts.pairs
    return Loss(loss, terms)


def reward_terms(chosen_P: Tensor, rejected_P: Tensor, counts: Counts) -> dict[str, Tensor]:
    """What is logged of the rewards [P] of both answers, under TRL's names."""
    return {
        "rewards/chosen": chosen_P.sum() / counts.pairs,
        "rewards/rejected": rejected_P.sum() / counts.pairs,
        "rewards/accuracies": (chosen_P > rejected_P).float().sum() / counts.pairs,
        "rewards/margins": (chosen_P - rejected_P).sum() / counts.pairs,
    }


@torch.no_grad()
def with_reference(
    model: Transformer, pairs: Sequence[EncodedPair], packed: Iterable[tuple[list[int], Batch]]
) -> list[EncodedPair]:
    """The pairs with both answers' log-probability under the model as it is; `packed` are their batches."""
    known = list(pairs)
    for indices, batch in packed:
        batch = batch.to(model.device)
        sum_S, _ = span_sums(batch_logprobs(model, batch), batch)
        both = zip(indices, sum_S[batch.chosen_P].tolist(), sum_S[batch.rejected_P].tolist(), strict=True)
        for index, chosen, rejected in both:
            known[index] = replace(pairs[index], reference=(chosen, rejected))
    return known
