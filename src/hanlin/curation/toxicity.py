"""A small linear classifier of offensive text in Chinese and English: hashed character n-grams, no download.

The weights (`toxicity.npz`, 8 bits each) were trained by `hanlin.curation.toxicity_training`; what from, and how well
they do, is in docs/curation-toxicity.md. It has seen comments of social media and errs on long answers, so these are
judged by windows and held to a stricter threshold.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.fingerprints import folded
from hanlin.curation.linear import bundled
from hanlin.curation.rule import KEEP, Span, Text, Verdict, objection

WEIGHTS = Path(__file__).parent / "toxicity.npz"
WINDOW = 240  # characters judged at once
MOST_WINDOWS = 200
_MARGIN = 0.5  # log-odds by the quick count; the exact ones must reach 2.9
LONG = 0.95  # threshold for a window of a longer text, which is no comment
_SPACES = re.compile(r"\s+")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_PRIME, _GOLDEN = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)
_HALF, _REST = np.uint64(31), np.uint64(46)  # 18 bits are left: linear.NUM_BUCKETS


def features(text: str) -> NDArray[np.int64]:
    """Buckets of a text's n-grams, each once: 1 to 3 characters of Chinese, 2 to 5 of other text with word edges."""
    made = f" {_SPACES.sub(' ', folded(text))} "
    sizes = [size for size in _sizes(made) if size <= len(made)]
    buckets = _buckets(_codes(made), sizes)
    return _different(np.concatenate([row[: len(made) - size + 1] for row, size in zip(buckets, sizes, strict=True)]))


def _different(buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """`np.unique`, which takes longer for as few."""
    buckets.sort()
    first = np.empty(len(buckets), bool)
    first[:1] = True
    np.not_equal(buckets[1:], buckets[:-1], out=first[1:])
    return buckets[first]


def _sizes(text: str) -> tuple[int, ...]:
    return (1, 2, 3) if _HAN.search(text) else (2, 3, 4, 5)


def _codes(text: str) -> NDArray[np.uint64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _buckets(codes: NDArray[np.uint64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """For each size (they go up by one) the bucket of the n-gram that starts at each character; behind it are zeros."""
    padded = np.concatenate((codes, np.zeros(sizes[-1] - 1, np.uint64)))
    total = codes ^ np.array(sizes, np.uint64)[:, None]
    shifted = np.empty_like(total)
    for index in range(sizes[-1]):
        longer = max(0, index + 1 - sizes[0])  # the first size with so many characters
        part, moved = total[longer:], shifted[longer:]
        if index:
            part ^= padded[index : index + len(codes)]
        part *= _PRIME
        np.right_shift(part, _HALF, out=moved)
        part ^= moved
    total *= _GOLDEN
    total >>= _REST
    return total.view(np.int64)


def score(text: str) -> float:
    """The probability that a short text is offensive."""
    return bundled(WEIGHTS).score(features(text))


def threshold(text: str) -> float:
    """The bundled threshold of the text's language."""
    model = bundled(WEIGHTS)
    return model.threshold_zh if _HAN.search(text) else model.threshold_en


def windows(text: str) -> Sequence[tuple[int, int]]:
    """Stretches of about 240 characters that are judged by themselves."""
    return [(start, start + WINDOW) for start in range(0, max(1, len(text)), WINDOW)][:MOST_WINDOWS]


def _suspects(text: Text) -> Sequence[tuple[int, int]]:
    """Windows that may be above `LONG`: repeated n-grams counted each time, which is quick, and a wide margin."""
    places = windows(text.raw)
    made = text.simplified
    if len(made) != len(text.raw) or len(made) < 2 * WINDOW:
        return places
    model = bundled(WEIGHTS)
    sizes = _sizes(made)
    found = model.weights[_buckets(_codes(made[: places[-1][1]] + " " * sizes[-1]), sizes)]
    totals = np.add.reduceat(found, [start for start, _ in places], axis=1).sum(axis=0, dtype=np.float64)
    likely = totals / np.sqrt(WINDOW * len(sizes)) + model.bias > _MARGIN
    return [place for place, suspect in zip(places, likely.tolist(), strict=True) if suspect]


def judge_toxicity(text: Text) -> Verdict:
    """The rule `toxic`: objects when a window is above its language's threshold."""
    raw = text.raw
    if not raw or raw.isspace():
        return KEEP
    long = len(raw) > WINDOW
    for start, end in _suspects(text):
        window = raw[start:end]
        if (found := score(window)) >= (max(LONG, threshold(window)) if long else threshold(window)):
            return objection(f"probability {found:.2f}", (Span(start, min(end, len(raw)), "toxic"),))
    return KEEP
