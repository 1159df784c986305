"""The run's diary: `metrics.jsonl` with TRL's metric names, one record a step, and a plot of it at the end.

Records of steps that a resumed run repeats are dropped first, so that every step appears once.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hanlin.errors import TrainingError
from hanlin.models.transformer import Transformer
from hanlin.training.checkpoint import Progress
from hanlin.training.runs import CURVES, FILE, read_metrics, series, smoothed
from hanlin.training.trackers import Look, Sample, Tracker
from hanlin.training.work import Observer

SAMPLES = "samples.jsonl"


class MetricsLog:
    """Appends records to RUN/metrics.jsonl (or another `file` of the kind), each on disk before the next step."""

    def __init__(self, run: Path, *, first_step: int = 0, file: str = FILE) -> None:
        """Keep what was written up to and with step `first_step`; drop the rest (and a half-written last line)."""
        self.path = run / file
        kept = [record for record in read_metrics(run, file) if record["step"] <= first_step] if first_step else []
        partial = self.path.with_name(f".{file}.partial")
        try:
            partial.write_text("".join(_line(record) for record in kept), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.path} cannot be written ({error.strerror}): free space, then go on with --resume")


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({key: _round(value) for key, value in record.items()}, ensure_ascii=False) + "\n"


def _round(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has no nan


class Samples:
    """What a model answers to fixed prompts while it is trained: RUN/samples.jsonl, and the trackers."""

    def __init__(
        self,
        run: Path,
        look: Look,
        model: Transformer,
        *,
        trackers: Sequence[Tracker],
        first_step: int,
        on_note: Callable[[str], None],
    ) -> None:
        self._log = MetricsLog(run, first_step=first_step, file=SAMPLES)
        self._look: Look | None = look
        self._model = model
        self._trackers = trackers
        self._on_note = on_note

    def take(self, step: int) -> dict[str, float]:
        """Ask and write down; what is measured of the answers. {} from the time on when there is no memory for it."""
        if self._look is None:
            return {}
        try:
            looked = self._look(self._model)
        except torch.OutOfMemoryError:
            self._look = None
            self._on_note("no memory is left for sample answers: the run goes on without them (track.samples = 0)")
            return {}
        for sample in looked.samples:
            self._log.write({"step": step, **_fields(sample)})
        for tracker in self._trackers:
            tracker.show(step, looked.samples)
        return looked.numbers


def _fields(sample: Sample) -> dict[str, Any]:
    return {"prompt": sample.prompt, "answer": sample.answer, "ended": sample.ended}


class Diary:
    """An `Observer` that writes every event to the metrics log and passes it on to another observer, if there is
    one. `summarise` makes the log's numbers of held-out scores. `trackers` are told every number too; `samples` are
    taken before, after and every `sample_every` steps.
    """

    def __init__(
        self,
        log: MetricsLog,
        then: Observer | None,
        summarise: Callable[[Sequence[Any]], dict[str, float]],
        *,
        trackers: Sequence[Tracker] = (),
        samples: Samples | None = None,
        sample_every: int = 0,
    ) -> None:
        self._log = log
        self._then = then
        self._summarise = summarise
        self._trackers = trackers
        self._samples = samples
        self._sample_every = sample_every

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self._record(progress.step, metrics)
        if self._then is not None:
            self._then.step(progress, num_steps, metrics)
        if self._sample_every and progress.step % self._sample_every == 0 and progress.step < num_steps:
            self.sample(progress)

    def sample(self, progress: Progress) -> None:
        """Ask the model its fixed prompts, if anybody wants to know."""
        if self._samples is not None and (numbers := self._samples.take(progress.step)):
            self._record(progress.step, numbers)

    def _record(self, step: int, numbers: dict[str, float]) -> None:
        self._log.write({"step": step, **numbers})
        for tracker in self._trackers:
            tracker.log(step, numbers)

    def evaluated(self, progress: Progress, scores: Sequence[Any]) -> None:
        self._record(progress.step, self._summarise(scores))
        if self._then is not None:
            self._then.evaluated(progress, scores)

    def saved(self, path: Path) -> None:
        if self._then is not None:
            self._then.saved(path)


class Silence:
    """The diary of a rank that does not speak: it writes nothing and tells nobody."""

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None: ...
    def evaluated(self, progress: Progress, scores: Sequence[Any]) -> None: ...
    def saved(self, path: Path) -> None: ...
    def sample(self, progress: Progress) -> None: ...


def plot_metrics(run: Path) -> Path:
    """Draw likelihood and reward accuracy over steps, training and held-out, to RUN/metrics.png: what the run has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(run)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    known = {key for record in records for key in record}
    curves = [curve for curve in CURVES if known.intersection(curve[1])] or CURVES
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, (train, held_out)) in zip(panels, curves, strict=True):
        steps, values = series(records, train)
        axes.plot(steps, values, color="#9db8d2", linewidth=1)
        axes.plot(steps, smoothed(values), color="#1f4e79", label="training (smoothed)")
        axes.plot(*series(records, held_out), "o-", color="#b5482f", label="held out")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path = run / "metrics.png"
    partial = run / ".metrics.partial.png"
    figure.savefig(partial, dpi=120)
    os.replace(partial, path)
    return path
