"""How a model rates pairs that it does not learn from: log-probabilities of both answers, without gradients."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.objectives.orpo import log_odds
from hanlin.types import Batch


@dataclass(frozen=True, slots=True)
class PairScore:
    """Of one pair: mean log-probability of each answer's tokens, stop token included, and the difference of their
    log-odds. `log_ratio` is how much further than under the starting model the answers' log-probabilities are apart;
    0 where pairs have no reference.
    """

    chosen: float
    rejected: float
    log_odds: float
    log_ratio: float = 0.0

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


@torch.no_grad()
def score_pairs(model: Transformer, packed: Iterable[tuple[list[int], Batch]]) -> list[PairScore]:
    """Scores of all pairs in the order of their indices; `packed` is what `data.pack.pack_all` yields."""
    scores: dict[int, PairScore] = {}
    for indices, batch in packed:
        batch = batch.to(model.device)
        sum_S, tokens_S = span_sums(batch_logprobs(model, batch), batch)
        mean_S = sum_S / tokens_S
        chosen_P, rejected_P = mean_S[batch.chosen_P], mean_S[batch.rejected_P]
        odds_P = log_odds(chosen_P) - log_odds(rejected_P)
        columns = [chosen_P, rejected_P, odds_P]
        if batch.reference_S is not None:
            gain_S = sum_S - batch.reference_S
            columns.append(gain_S[batch.chosen_P] - gain_S[batch.rejected_P])
        rows = zip(indices, *(column.tolist() for column in columns), strict=True)
        scores |= {index: PairScore(*values) for index, *values in rows}
    return [scores[index] for index in sorted(scores)]


def held_out_metrics(scores: Sequence[PairScore], *, weight: float) -> dict[str, float]:
    """Means over held-out pairs under TRL's names; NLL is the mean over pairs of the chosen answer's mean per token."""
    chosen, rejected = fmean(score.chosen for score in scores), fmean(score.rejected for score in scores)
    return {
        "eval_nll_loss": -chosen,
        "eval_rewards/accuracies": fmean(score.margin > 0 for score in scores),
        "eval_rewards/margins": weight * (chosen - rejected),
        "eval_logps/chosen": chosen,
        "eval_logps/rejected": rejected,
        "eval_log_odds_chosen": fmean(score.log_odds for score in scores),
    }


def referenced_metrics(scores: Sequence[PairScore], *, weight: float) -> dict[str, float]:
    """`held_out_metrics` with DPO's rewards, which are relative to the starting model: at step 0 there are none."""
    return held_out_metrics(scores, weight=weight) | {
        "eval_rewards/accuracies": fmean(score.log_ratio > 0 for score in scores),
        "eval_rewards/margins": weight * fmean(score.log_ratio for score in scores),
    }
