"""A linear classifier over hashed features, eight bits a weight: what the bundled classifiers are made of.

A text is a set of buckets, one for each of its features; its score is the logistic function of their weights' sum,
scaled by the root of their number, so that long texts and short ones are judged alike.
"""

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 1 << 18


@dataclass(frozen=True, slots=True)
class Linear:
    """Weights of `NUM_BUCKETS` buckets, and for each language the score from which on a text is one of them."""

    weights: NDArray[np.float32]
    bias: float
    threshold_zh: float
    threshold_en: float

    def score(self, buckets: NDArray[np.int64]) -> float:
        """The probability for a text with these buckets."""
        return probability(buckets, self.weights, self.bias)


def probability(buckets: NDArray[np.int64], weights: NDArray[np.float32], bias: float) -> float:
    """The logistic function of the mean-scaled sum of weights (norm 1 for each text, as it was trained)."""
    total = weights[buckets].sum() / np.sqrt(max(1, len(buckets))) + bias
    return float(1 / (1 + np.exp(-min(max(total, -30), 30))))


def save_linear(path: Path, model: Linear) -> None:
    """Write a classifier, its weights `rounded`."""
    packed, scale = _packed(model.weights)
    np.savez(
        path,
        weights=np.frombuffer(zlib.compress(packed.tobytes(), 9), np.uint8),
        scale=scale,
        bias=model.bias,
        threshold_zh=model.threshold_zh,
        threshold_en=model.threshold_en,
    )


def rounded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights as they are read again: in eight bits, cut at the 99.99th percentile of those that are not zero."""
    packed, scale = _packed(weights)
    return packed.astype(np.float32) * scale


def _packed(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    scale = float(np.quantile(np.abs(weights[weights != 0]), 0.9999)) / 127
    return np.clip(np.round(weights / scale), -127, 127).astype(np.int8), scale


def read_linear(path: Path) -> Linear:
    """Read what `save_linear` wrote."""
    with np.load(path) as arrays:
        packed = zlib.decompress(arrays["weights"].tobytes())
        weights = np.frombuffer(packed, np.int8).astype(np.float32) * float(arrays["scale"])
        return Linear(weights, *(float(arrays[name]) for name in ("bias", "threshold_zh", "threshold_en")))


bundled = cache(read_linear)
