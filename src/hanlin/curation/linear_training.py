"""Logistic regression on hashed features with NumPy alone: stochastic gradient with AdaGrad's step sizes, an L2
penalty, averaged over the second half of the epochs.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.linear import NUM_BUCKETS, probability
from hanlin.errors import HanlinError

Example = tuple[NDArray[np.int64], int]


def fit(
    examples: Sequence[Example], *, epochs: int, rate: float, penalty: float, seed: int = 0
) -> tuple[NDArray[np.float32], float]:
    """Weights and bias."""
    weights, squares = np.zeros(NUM_BUCKETS, np.float64), np.full(NUM_BUCKETS, 1e-2)
    mean, num_means = np.zeros(NUM_BUCKETS), 0
    bias, bias_square = 0.0, 1e-2
    order = np.random.default_rng(seed)
    for epoch in range(epochs):
        for index in order.permutation(len(examples)):
            buckets, label = examples[index]
            norm = np.sqrt(max(1, len(buckets)))
            total = weights[buckets].sum() / norm + bias
            error = 1 / (1 + np.exp(-np.clip(total, -30, 30))) - label
            gradient = error / norm + penalty * weights[buckets] * norm
            squares[buckets] += gradient * gradient
            weights[buckets] -= rate * gradient / np.sqrt(squares[buckets])
            bias_square += error * error
            bias -= 0.1 * error / np.sqrt(bias_square)
        if 2 * epoch >= epochs:
            mean, num_means = mean + weights, num_means + 1
    return (mean / num_means).astype(np.float32), bias


def best_threshold(scores: NDArray[np.float64], labels: NDArray[np.int64], precision: float) -> float:
    """The lowest score from which on at least `precision` of the texts have the label."""
    order = np.argsort(-scores)
    right = np.cumsum(labels[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero((right >= precision) & (np.arange(len(order)) >= 50))
    return float(scores[order[enough[-1]]]) if len(enough) else 0.99


def measure(
    examples: Sequence[Example], weights: NDArray[np.float32], bias: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores and labels."""
    scores = [probability(buckets, weights, bias) for buckets, _ in examples]
    return np.array(scores), np.array([label for _, label in examples])


def run_command(main: Callable[[Sequence[str]], str]) -> int:
    """A training module as a command: prints what `main` tells; a user's mistake is one line and exit status 2."""
    try:
        told = main(sys.argv[1:])
    except HanlinError as error:
        sys.stderr.write(f"error 错误: {error}\n")
        return 2
    sys.stdout.write(told + "\n")
    return 0
