"""Distillation: the student learns the teacher's whole distribution of the next token, not only the token that came.

    loss = ( sum of D(p, q) - weight * sum of log q1(token) ) / number of scored tokens of the step

p is the teacher's and q the student's distribution, both of softmax(logits / temperature); q1 is the student's at
temperature 1. D, for each scored token, is one of

    forward         KL(p || q)                                  covers all that the teacher may say
    reverse         KL(q || p)                                  keeps to what the teacher says most
    jensen-shannon  (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2

The forward one is what Gemma 2 2B and 9B were trained with (arXiv 2408.00118, section 3.2: the cross-entropy with the
teacher's probabilities, which differs from it by a number that the student cannot change). The three are the
generalised divergences of GKD (arXiv 2306.13649, section 2) at the ends and in the middle, without the factor
temperature² that some add, as in TRL's GKDTrainer.

The teacher reads the same stream, without gradients. Its logits exist a chunk of rows at a time, next to the student's
(`likelihood.Reduce`), so a step needs the memory of a likelihood step and one chunk more.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hanlin.config import Section
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer, soft_cap
from hanlin.objectives.likelihood import batch_hidden, chunks, head_values, piece_rows, raw_logits, span_sums
from hanlin.objectives.next_token import TextScore, text_metrics
from hanlin.types import Batch, Counts, Loss


class DistillationConfig(Section):
    """Learning from a larger model with the same vocabulary. `weight` is the likelihood's beside the divergence."""

    kind: Literal["distillation"]
    teacher: str
    """A directory, a .gguf file, a hub id or a known small model, as model.path; it stays as it is."""
    divergence: Literal["forward", "reverse", "jensen-shannon"] = "forward"
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions; above 1 what is unlikely weighs more."""
    weight: float = Field(default=0.0, ge=0)
    examples: Literal["conversations", "documents"] = "conversations"
    score: Literal["every", "last"] = "every"
    """Of conversations: which assistant turns are learnt, as in SFT."""


@dataclass(frozen=True, slots=True)
class DistillationScore:
    """Of one held-out text: its likelihood under the student, and the sum of its tokens' divergences."""

    text: TextScore
    divergence: float

    @property
    def mean_divergence(self) -> float:
        """Of a token, in nats."""
        return self.divergence / self.text.tokens


def distillation(
    model: Transformer, batch: Batch, counts: Counts, *, teacher: Transformer, config: DistillationConfig
) -> Loss:
    """The partial loss of one batch, divided by the whole step's `counts`."""
    value_N, comparison = _compared(model, batch, teacher, config)
    terms = {
        "divergence": comparison.divergence_N.sum() / counts.likelihood_tokens,
        "nll_loss": comparison.nll_N.sum() / counts.likelihood_tokens,
    }
    return Loss(-value_N.sum() / counts.likelihood_tokens, terms)


@torch.no_grad()
def score_against(
    model: Transformer, packed: Iterable[tuple[list[int], Batch]], *, teacher: Transformer, config: DistillationConfig
) -> list[DistillationScore]:
    """Scores of all texts in the order of their indices; a text is a span."""
    scores: dict[int, DistillationScore] = {}
    for indices, batch in packed:
        batch = batch.to(model.device)
        _, comparison = _compared(model, batch, teacher, config)
        divergence_S, tokens_S = span_sums(comparison.divergence_N, batch)
        nll_S, _ = span_sums(comparison.nll_N, batch)
        rows = zip(indices, nll_S.tolist(), tokens_S.tolist(), divergence_S.tolist(), strict=True)
        for index, nll, tokens, divergence in rows:
            scores[index] = DistillationScore(TextScore(-nll, round(tokens)), divergence)
    return [scores[index] for index in sorted(scores)]


def distillation_metrics(scores: Sequence[DistillationScore]) -> dict[str, float]:
    """For the log: divergence and NLL a token over all texts together."""
    tokens = sum(score.text.tokens for score in scores)
    mean = sum(score.divergence for score in scores) / tokens
    return {"eval_divergence": mean, **text_metrics([score.text for score in scores])}


def _compared(
    model: Transformer, batch: Batch, teacher: Transformer, config: DistillationConfig
) -> "tuple[Tensor, _Comparison]":
    """Minus the loss of every scored token [N], and the comparison that holds its parts."""
    with torch.no_grad():
        teacher_ND = batch_hidden(teacher, batch).index_select(0, batch.predictor_N)
    comparison = _Comparison(model, teacher, teacher_ND, batch.target_N, config)
    hidden_ND = batch_hidden(model, batch).index_select(0, batch.predictor_N)
    return head_values(model, hidden_ND, comparison), comparison


class _Comparison:
    """A `likelihood.Reduce`: the student's logits become minus the loss of each prediction. `divergence_N` and `nll_N`
    are its parts, without gradients.
    """

    def __init__(
        self,
        model: Transformer,
        teacher: Transformer,
        teacher_ND: Tensor,
        target_N: Tensor,
        config: DistillationConfig,
    ) -> None:
        self._room = model.scratch or Scratch()
        self._cap, self._teacher_cap = model.config.logit_cap, teacher.config.logit_cap
        self._teacher_ND, self._target_N, self._config = teacher_ND, target_N, config
        self._weight_VD = self._room.cast(teacher.head_weight, teacher_ND.dtype)
        self.divergence_N = torch.empty(len(target_N), dtype=torch.float32, device=target_N.device)
        self.nll_N = torch.empty_like(self.divergence_N)

    def __call__(
        self, logits_RV: Tensor, rows: slice, /, *, differentiate: bool, factor_R1: Tensor | None = None
    ) -> Tensor:
        for chunk in chunks(len(logits_RV)):
            places = slice(rows.start + chunk.start, rows.start + chunk.stop)
            teacher_RV = raw_logits(self._teacher_ND[places], self._weight_VD, self._room, name="teacher logits")
            for piece in chunks(len(teacher_RV), piece_rows(teacher_RV)):
                mine = slice(chunk.start + piece.start, chunk.start + piece.stop)
                place = slice(rows.start + mine.start, rows.start + mine.stop)
                slope_RV = self._compare(logits_RV[mine], teacher_RV[piece], place)
                if differentiate:
                    logits_RV[mine] = slope_RV if factor_R1 is None else slope_RV.mul_(factor_R1[mine])
            del teacher_RV  # the next chunk takes the same buffer
        return -self.divergence_N[rows] - self._config.weight * self.nll_N[rows]

    def _compare(self, logits_RV: Tensor, teacher_RV: Tensor, place: slice) -> Tensor:
        """Fill in both parts of these predictions' loss; returns its slope with regard to the raw logits."""
        temperature, weight = self._config.temperature, self._config.weight
        z_RV = soft_cap(logits_RV.float(), self._cap)
        log_p_RV = F.log_softmax(soft_cap(teacher_RV.float(), self._teacher_cap) / temperature, dim=-1)
        log_q_RV = F.log_softmax(z_RV / temperature, dim=-1)
        self.divergence_N[place], slope_RV = DIVERGENCES[self._config.divergence](log_p_RV, log_q_RV)
        slope_RV.div_(temperature)
        plain_RV = log_q_RV if temperature == 1 else F.log_softmax(z_RV, dim=-1)
        target_R1 = self._target_N[place, None]
        self.nll_N[place] = -plain_RV.gather(1, target_R1)[:, 0]
        if weight:
            likely_RV = plain_RV.exp()
            likely_RV.scatter_add_(1, target_R1, torch.full_like(likely_RV[:, :1], -1.0))
            slope_RV.add_(likely_RV, alpha=weight)
        if self._cap is not None:
            slope_RV.mul_(1 - (z_RV / self._cap).square_())
        return slope_RV


def forward_kl(log_p_RV: Tensor, log_q_RV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) [R] and its slope [R, V] with regard to the logits of q, for log-probabilities [R, V]."""
    p_RV = log_p_RV.exp()
    return (p_RV * (log_p_RV - log_q_RV)).sum(-1), log_q_RV.exp().sub_(p_RV)


def reverse_kl(log_p_RV: Tensor, log_q_RV: Tensor) -> tuple[Tensor, Tensor]:
    """As `forward_kl`, for KL(q || p)."""
    q_RV, gap_RV = log_q_RV.exp(), log_q_RV - log_p_RV
    value_R = (q_RV * gap_RV).sum(-1)
    return value_R, gap_RV.sub_(value_R[:, None]).mul_(q_RV)


def jensen_shannon(log_p_RV: Tensor, log_q_RV: Tensor) -> tuple[Tensor, Tensor]:
    """As `forward_kl`, for the mean of KL(p || m) and KL(q || m), m = (p + q) / 2."""
    log_m_RV = torch.logaddexp(log_p_RV, log_q_RV).sub_(log(2))
    from_teacher_R, _ = forward_kl(log_p_RV, log_m_RV)
    from_student_R, slope_RV = reverse_kl(log_m_RV, log_q_RV)
    return (from_teacher_R + from_student_R) / 2, slope_RV.div_(2)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen-shannon": jensen_shannon,
}
