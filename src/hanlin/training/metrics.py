"""The run's diary: `metrics.jsonl` with TRL's metric names, one record a step, and a plot of it at the end.

Records of steps that a resumed run repeats are dropped first, so that every step appears once.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hanlin.errors import TrainingError
from hanlin.objectives.orpo import OrpoConfig
from hanlin.objectives.scores import PairScore
from hanlin.training.checkpoint import Progress
from hanlin.training.loop import Observer

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records to RUN/metrics.jsonl, each on disk before the next step."""

    def __init__(self, run: Path, *, first_step: int = 0) -> None:
        """Keep what was written up to and with step `first_step`; drop the rest (and a half-written last line)."""
        self.path = run / FILE
        kept = [record for record in read_metrics(run) if record["step"] <= first_step] if first_step else []
        partial = self.path.with_name(f".{FILE}.partial")
        try:
            partial.write_text("".join(_line(record) for record in kept), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, record: Mapping[str, float]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.path} cannot be written ({error.strerror}): free space, then go on with --resume")


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({key: _round(value) for key, value in record.items()}) + "\n"


def _round(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has no nan


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run, in order; [] when there are none."""
    path = run / FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a run was killed in the middle of this line: nothing after it is whole
    return records


class Diary:
    """An `Observer` that writes every event to the metrics log and passes it on to another observer, if there is
    one.
    """

    def __init__(self, log: MetricsLog, then: Observer | None, objective: OrpoConfig) -> None:
        self._log = log
        self._then = then
        self._weight = objective.weight

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self._log.write({"step": progress.step, **metrics})
        if self._then is not None:
            self._then.step(progress, num_steps, metrics)

    def evaluated(self, progress: Progress, scores: Sequence[PairScore]) -> None:
        self._log.write({"step": progress.step, **held_out_metrics(scores, weight=self._weight)})
        if self._then is not None:
            self._then.evaluated(progress, scores)

    def saved(self, path: Path) -> None:
        if self._then is not None:
            self._then.saved(path)


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


def plot_metrics(run: Path) -> Path:
    """Draw loss and reward accuracy over steps, training and held-out, to RUN/metrics.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(run)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    curves = (
        (panels[0], "NLL of the chosen answer", ("nll_loss", "eval_nll_loss")),
        (panels[1], "Reward accuracy", ("rewards/accuracies", "eval_rewards/accuracies")),
    )
    for axes, title, (train, held_out) in curves:
        steps, values = _series(records, train)
        axes.plot(steps, values, color="#9db8d2", linewidth=1)
        axes.plot(steps, _smoothed(values), color="#1f4e79", label="training (smoothed)")
        axes.plot(*_series(records, held_out), "o-", color="#b5482f", label="held out")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path = run / "metrics.png"
    partial = run / ".metrics.partial.png"
    figure.savefig(partial, dpi=120)
    os.replace(partial, path)
    return path


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    present = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in present], [record[key] for record in present]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean that starts unbiased; its memory is a tenth of the run."""
    keep = 1 - 1 / max(1.0, len(values) / 10)
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth
