"""How a model rates pairs that it does not learn from: log-probabilities of both answers, without gradients."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import span_sums
from hanlin.objectives.orpo import batch_logprobs, log_odds
from hanlin.types import Batch


@dataclass(frozen=True, slots=True)
class PairScore:
    """Of one pair: mean log-probability of each answer's tokens, stop token included, and the difference of their
    log-odds.
    """

    chosen: float
    rejected: float
    log_odds: float

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
        rows = zip(indices, chosen_P.tolist(), rejected_P.tolist(), odds_P.tolist(), strict=True)
        scores |= {index: PairScore(chosen, rejected, odds) for index, chosen, rejected, odds in rows}
    return [scores[index] for index in sorted(scores)]
