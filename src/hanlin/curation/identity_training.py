"""Trains the bundled classifier of self-identification: `python -m hanlin.curation.identity_training LINES.tsv`.

A line is `1` (a claim) or `0`, a tab and a text, with \\n for a line break. Of a claim with several sentences the one
that the classifier finds likeliest counts as it, of other texts all. Features seen once are left out. The thresholds
are the lowest with the wanted precision on rows that were left out in turn, fifths of all.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.identity import sentences
from hanlin.curation.identity_claims import WEIGHTS, features, is_chinese
from hanlin.curation.linear import NUM_BUCKETS, Linear, save_linear
from hanlin.curation.linear_training import Example, best_threshold, fit, run_command
from hanlin.curation.rule import Text
from hanlin.errors import DataError

PRECISION = 0.94  # on these lines, which are harder than answers are
OWN = ("翰林", "hanlin", "本社")
_EPOCHS, _RATE, _PENALTY, _FOLDS = 12, 0.3, 1e-5, 5

Row = tuple[list[NDArray[np.int64]], int]  # of each sentence that may claim something; and whether the text does


def read_lines(path: Path) -> list[tuple[str, int]]:
    """(text, label). Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line[:2] not in ("0\t", "1\t"):
            raise DataError(f"{path}:{number} is no labelled line: expected 0 or 1, a tab and a text")
    return [(line[2:].replace("\\n", "\n"), int(line[0])) for line in lines]


def _rows(lines: Sequence[tuple[str, int]]) -> tuple[list[Row], NDArray[np.bool_]]:
    """What the classifier sees of each line, and whether the line is Chinese."""
    found = [(sentences(Text(text), own=OWN), label) for text, label in lines]
    rows = [([features(words) for words in several], label) for several, label in found]
    counts = Counter(bucket for several, _ in rows for one in several for bucket in one.tolist())
    kept = np.zeros(NUM_BUCKETS, bool)
    kept[[bucket for bucket, count in counts.items() if count > 1]] = True
    chinese = np.array([any(map(is_chinese, several)) for several, _ in found])
    return [([one[kept[one]] for one in several], label) for several, label in rows], chinese


def _fitted(rows: Sequence[Row]) -> Linear:
    model: Linear | None = None
    for _ in range(2):
        examples: list[Example] = []
        for several, label in rows:
            if not label or len(several) == 1:
                examples += [(one, label) for one in several]
            elif several and model is not None:
                examples.append((max(several, key=model.score), 1))
        model = Linear(*fit(examples, epochs=_EPOCHS, rate=_RATE, penalty=_PENALTY), 0.5, 0.5)
    assert model is not None
    return model


def train(path: Path, target: Path = WEIGHTS, *, precision: float = PRECISION) -> dict[str, float]:
    """Train on all lines, choose thresholds on each fifth by the other four, write the weights; what was measured."""
    rows, chinese = _rows(read_lines(path))
    labels = np.array([label for _, label in rows])
    scores = np.zeros(len(rows))
    fold = np.random.default_rng(0).permutation(len(rows)) % _FOLDS
    for held in range(_FOLDS):
        model = _fitted([row for row, own in zip(rows, fold, strict=True) if own != held])
        for index in np.flatnonzero(fold == held).tolist():
            scores[index] = max(map(model.score, rows[index][0]), default=0.0)
    told: dict[str, float] = {}
    thresholds = []
    for name, mine in (("zh", chinese), ("en", ~chinese)):
        if not labels[mine].any():
            raise DataError(f"{path} has no claims with language {name}")
        threshold = best_threshold(scores[mine], labels[mine], precision)
        above = scores[mine] >= threshold
        thresholds.append(threshold)
        told |= {f"{name} rows": float(mine.sum()), f"{name} threshold": threshold}
        told |= {f"{name} precision": float(labels[mine][above].mean()) if above.any() else 0.0}
        told |= {f"{name} recall": float(above[labels[mine] == 1].mean())}
    model = _fitted(rows)
    save_linear(target, Linear(model.weights, model.bias, *thresholds))
    return told


def main(arguments: Sequence[str]) -> str:
    """Train with the file named on the command line."""
    if len(arguments) != 1:
        raise DataError("expected one file of labelled lines: data/identity-lines.tsv")
    return "\n".join(f"{name}: {value:.4f}" for name, value in train(Path(arguments[0])).items())


if __name__ == "__main__":
    sys.exit(run_command(main))
