"""Likelihood of text: what SFT and continued pre-training have in common. Only the scored tokens tell them apart.

    loss = - sum of log p(scored token | what is before it) / number of scored tokens of the step

A mean over tokens, as in TRL's and LLaMA-Factory's trainers: long answers weigh more than short ones.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hanlin.config import Section
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.types import Batch, Counts, Loss


class SftConfig(Section):
    """Supervised fine-tuning on conversations."""

    kind: Literal["sft"]
    score: Literal["every", "last"] = "every"
    """Which assistant turns are learnt; their stop token always is."""


class PretrainingConfig(Section):
    """Continued pre-training on documents. `weights` are shares of the sequences, one for each entry of data.train;
    left out, entries weigh what they hold. Over the last `final_share` of the steps `final_weights` hold instead (the
    Gemma report, arXiv 2403.08295, section 4, raises the share of good data towards the end).
    """

    kind: Literal["pretraining"]
    weights: tuple[float, ...] = ()
    final_weights: tuple[float, ...] = ()
    final_share: float = Field(default=0.1, gt=0, lt=1)


@dataclass(frozen=True, slots=True)
class TextScore:
    """Of one held-out text: sum of the log-probabilities of its scored tokens, and how many these are."""

    logprob: float
    tokens: int

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a token."""
        return -self.logprob / self.tokens


def next_token(model: Transformer, batch: Batch, counts: Counts) -> Loss:
    """The partial loss of one batch, divided by the whole step's `counts`."""
    return next_token_from_logprobs(batch_logprobs(model, batch), counts)


def next_token_from_logprobs(logp_N: Tensor, counts: Counts) -> Loss:
    """The arithmetic on token log-probabilities [N]."""
    nll = -logp_N.sum() / counts.likelihood_tokens
    return Loss(nll, {"nll_loss": nll.detach()})


@torch.no_grad()
def score_texts(model: Transformer, packed: Iterable[tuple[list[int], Batch]]) -> list[TextScore]:
    """Scores of all texts in the order of their indices; a text is a span."""
    scores: dict[int, TextScore] = {}
    for indices, batch in packed:
        batch = batch.to(model.device)
        sum_S, tokens_S = span_sums(batch_logprobs(model, batch), batch)
        rows = zip(indices, sum_S.tolist(), tokens_S.tolist(), strict=True)
        scores |= {index: TextScore(total, round(tokens)) for index, total, tokens in rows}
    return [scores[index] for index in sorted(scores)]


def text_metrics(scores: Sequence[TextScore]) -> dict[str, float]:
    """For the log: NLL a token over all texts together, and the perplexity that it means."""
    nll = -sum(score.logprob for score in scores) / sum(score.tokens for score in scores)
    return {"eval_nll_loss": nll, "eval_perplexity": math.exp(nll)}
