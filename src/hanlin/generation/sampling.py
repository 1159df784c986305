"""From logits to the next token: `Sampling` says how, `sample` does it for a batch of unrelated requests.

Filters come in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. A token is drawn with one uniform number
from the request's own generator, by inverting the distribution in the order of token ids: what a request gets depends on its logits and its
seed alone, never on its neighbours, and a tiny change of the logits hardly ever changes the choice. Nothing is sorted but the few tokens
that can matter; where those turn out not to suffice, all are.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hanlin.errors import ConfigError

# Relative to the likeliest token. Less likely ones are looked at only when those above do not reach top_k or top_p.
_CANDIDATE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the likeliest; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 switch off.

    The defaults are Meta's for Llama 3, which the Chinese-chat models' cards recommend too. `seed` None draws a new one each time.
    Raises ConfigError for values out of range.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0 (1 is off)")
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "1 or more")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not good or not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; expected {expected}")


@dataclass(slots=True)
class Draw:
    """One request's row: how to choose, its generator, and the ids that the repetition penalty counts (prompt and answer)."""

    sampling: Sampling
    generator: random.Random
    seen: Collection[int] = ()


def sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id for each row of fp32 logits [B, V] (as the model's head gives them); the logits may be overwritten."""
    for row, draw in enumerate(draws):
        if draw.sampling.repetition_penalty != 1 and draw.seen:
            _penalize(logits_BV[row], draw.seen, draw.sampling.repetition_penalty)
    best_B = logits_BV.argmax(-1).tolist()
    rows = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    if not rows:
        return best_B
    sampled_NV = logits_BV if len(rows) == len(draws) else logits_BV[rows]
    temperature_N1 = torch.tensor([[draws[row].sampling.temperature] for row in rows], device=logits_BV.device)
    top_N1 = sampled_NV.amax(-1, keepdim=True)
    weights_NV = torch.sub(sampled_NV, top_N1).div_(temperature_N1).exp_()
    totals = weights_NV.sum(-1).tolist()
    for row, weights_V, total in zip(rows, weights_NV.cpu().numpy(), totals, strict=True):
        kept, kept_weights = keep(weights_V, total, draws[row].sampling)
        below = kept_weights.astype(np.float64).cumsum()
        index = np.searchsorted(below, draws[row].generator.random() * below[-1], side="right")
        best_B[row] = int(kept[min(index, len(kept) - 1)])
    return best_B


def keep(weights_V: np.ndarray, total: float, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The ids, ascending, that survive top-k, top-p and min-p, and their weights.

    `weights_V` are probabilities divided by the largest one (so min-p is a plain threshold), `total` is their sum.
    """
    if not sampling.top_k and sampling.top_p == 1:
        kept = np.flatnonzero(weights_V >= sampling.min_p)
        return kept, weights_V[kept]
    for floor in (_CANDIDATE_FLOOR, 0.0):
        ids = np.flatnonzero(weights_V >= floor)
        # Descending; among equals the higher id first, as the stable ascending sort of transformers has it.
        ids = ids[np.lexsort((ids, weights_V[ids]))[::-1]]
        weights = weights_V[ids].astype(np.float64)
        mass = total
        if 0 < sampling.top_k < len(weights_V):
            if len(ids) < sampling.top_k:
                continue
            count = int(np.count_nonzero(weights >= weights[sampling.top_k - 1]))  # equals of the last one stay too
            ids, weights = ids[:count], weights[:count]
            mass = weights.sum()
        elif floor and weights.sum() < sampling.top_p * total:
            continue
        if sampling.top_p < 1:
            before = weights.cumsum() - weights
            count = max(1, int(np.searchsorted(before, sampling.top_p * mass, side="left")))
            ids, weights = ids[:count], weights[:count]
        ids = np.sort(ids[weights >= sampling.min_p])
        return ids, weights_V[ids]
    raise AssertionError("with floor 0 every id is a candidate")


def _penalize(logits_V: Tensor, seen: Collection[int], penalty: float) -> None:
    """Divide the positive and multiply the negative logits of seen ids (CTRL, arXiv 1909.05858, section 4.1)."""
    ids = torch.tensor(sorted(set(seen)), device=logits_V.device)
    seen_logits = logits_V[ids]
    logits_V[ids] = torch.where(seen_logits > 0, seen_logits / penalty, seen_logits * penalty)
