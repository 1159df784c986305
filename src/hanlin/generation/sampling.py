"""From logits to the next token: `Sampling` says how, `sample` does it for a batch of unrelated requests.

Filters come in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. A token is drawn with
one uniform number from the request's own generator, by inverting the distribution in the order of token ids: what a
request gets depends on its logits and its seed alone, never on its neighbours, and a tiny change of the logits hardly
ever changes the choice. On a CPU nothing is sorted but the few tokens that can matter; where those turn out not to
suffice, all are.
"""

import hashlib
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hanlin.errors import CheckpointError, ConfigError
from hanlin.generation.device_sampling import draw_rows

# Relative to the likeliest token. Less likely ones are looked at only when those above do not reach top_k or top_p.
_CANDIDATE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the likeliest; `top_k` 0, `top_p` 1, `min_p` 0 and
    `repetition_penalty` 1 switch off.

    The defaults are Meta's for Llama 3, which the Chinese-chat models' cards recommend too. `seed` None draws a new one
    each time. Raises ConfigError for values out of range.
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


def derived_seed(*numbers: int) -> int:
    """A seed that follows from these numbers, the first of them a seed, and has nothing to do with those of others."""
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest())


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not good or not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; expected {expected}")


@dataclass(slots=True)
class Draw:
    """One request's row: how to choose, its generator, and the ids that the repetition penalty counts (prompt and
    answer).
    """

    sampling: Sampling
    generator: random.Random
    seen: Collection[int] = ()


def sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id for each row of fp32 logits [B, V], as the model's head gives them. May overwrite the logits."""
    for row, draw in enumerate(draws):
        if draw.sampling.repetition_penalty != 1 and draw.seen:
            _penalize(logits_BV[row], draw.seen, draw.sampling.repetition_penalty)
    greedy = [row for row, draw in enumerate(draws) if draw.sampling.greedy]
    drawn = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    chosen: dict[int, int] = {}
    if greedy:
        greedy_NV = _rows(logits_BV, greedy)
        best_N = _argmax(greedy_NV)
        _check_finite(greedy_NV.gather(1, best_N[:, None])[:, 0].tolist())
        chosen |= zip(greedy, best_N.tolist(), strict=True)
    if drawn:
        weights_NV = _rows(logits_BV, drawn)
        temperature_N1 = torch.tensor([[draws[row].sampling.temperature] for row in drawn], device=logits_BV.device)
        weights_NV = weights_NV.sub_(weights_NV.amax(-1, keepdim=True)).div_(temperature_N1).exp_()
        totals = weights_NV.sum(-1).tolist()
        _check_finite(totals)
        chosen |= zip(drawn, _draw(weights_NV, totals, [draws[row] for row in drawn]), strict=True)
    return [chosen[row] for row in range(len(draws))]


def _draw(weights_NV: Tensor, totals: Sequence[float], draws: Sequence[Draw]) -> list[int]:
    """One id for each row of probabilities divided by the row's largest one."""
    if weights_NV.device.type != "cpu":
        ways = [draw.sampling for draw in draws]
        ids_N = draw_rows(
            weights_NV,
            top_k=[way.top_k for way in ways],
            top_p=[way.top_p for way in ways],
            min_p=[way.min_p for way in ways],
            uniforms=[draw.generator.random() for draw in draws],
        )
        return ids_N.tolist()
    chosen = []
    for weights_V, total, draw in zip(weights_NV.numpy(), totals, draws, strict=True):
        ids = keep(weights_V, total, draw.sampling)
        sums = weights_V[ids].cumsum(dtype=np.float64)
        index = int(np.searchsorted(sums, draw.generator.random() * sums[-1], side="right"))
        chosen.append(int(ids[min(index, len(ids) - 1)]))
    return chosen


def keep(weights_V: np.ndarray, total: float, sampling: Sampling) -> np.ndarray:
    """The ids, ascending, that survive top-k, top-p and min-p.

    `weights_V` are probabilities divided by the largest one (so min-p is a plain threshold), `total` is their sum.
    Of equal weights at the edge of top-k all stay, as in transformers; at the edge of top-p as many as it takes, lower
    ids first (bf16 heads give many equal logits).
    """
    top_k = sampling.top_k if sampling.top_k < len(weights_V) else 0
    if top_k or sampling.top_p < 1:
        for floor in (_CANDIDATE_FLOOR, 0.0):
            candidates = np.flatnonzero(weights_V >= floor)
            values = np.sort(weights_V[candidates])[::-1]
            if not floor or (len(values) >= top_k if top_k else values.sum(dtype=np.float64) >= sampling.top_p * total):
                break
        if top_k:
            values = values[: np.count_nonzero(values >= values[top_k - 1])]
            total = values.sum(dtype=np.float64)
        if sampling.top_p < 1:
            before = values.cumsum(dtype=np.float64) - values
            values = values[: max(1, int(np.searchsorted(before, sampling.top_p * total)))]
        edge = values[-1]
        above, equal = candidates[weights_V[candidates] > edge], candidates[weights_V[candidates] == edge]
        ids = np.sort(np.concatenate((above, equal[: len(values) - len(above)])))
    else:
        ids = np.arange(len(weights_V))
    return ids[weights_V[ids] >= sampling.min_p] if sampling.min_p else ids


def _check_finite(values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise CheckpointError(
            "the model's logits are not finite: its weights are damaged, or its dtype overflows; try bfloat16 or "
            "float32"
        )


def _argmax(logits_NV: Tensor) -> Tensor:
    """The first of the largest; NumPy's search is ten times as fast as torch's on a CPU."""
    if logits_NV.device.type == "cpu":
        return torch.from_numpy(logits_NV.numpy().argmax(-1))
    return logits_NV.argmax(-1)


def _rows(logits_BV: Tensor, rows: list[int]) -> Tensor:
    return logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]


def _penalize(logits_V: Tensor, seen: Collection[int], penalty: float) -> None:
    """Divide the positive and multiply the negative logits of seen ids (CTRL, arXiv 1909.05858, section 4.1)."""
    ids = torch.tensor(sorted(set(seen)), device=logits_V.device)
    seen_logits = logits_V[ids]
    logits_V[ids] = torch.where(seen_logits > 0, seen_logits / penalty, seen_logits * penalty)
