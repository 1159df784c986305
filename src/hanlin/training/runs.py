"""What runs there are and how they went, read from their directories alone: recipe.toml, metrics.jsonl, checkpoints.

Torch is not needed, so that a list of runs comes at once. A run is "running" while the process that its file
`.running` names is alive on this machine; without that it is "finished" where it has become a model directory, and
"interrupted" otherwise.
"""

import json
import os
import socket
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanlin.errors import ConfigError

FILE = "metrics.jsonl"
RECIPE = "recipe.toml"
_RUNNING = ".running"
# On another machine its process cannot be asked for: a run that has written within so many seconds is at work.
_QUIET = 600
# What is drawn, where a run has it: a title, and the names in training and on what is held out.
CURVES = (
    ("NLL of what is learnt, per token", ("nll_loss", "eval_nll_loss")),
    ("Reward accuracy", ("rewards/accuracies", "eval_rewards/accuracies")),
    ("Reward of sampled answers", ("reward", "eval_reward")),
)
_COLORS = ("#1f4e79", "#b5482f", "#4f7a3a", "#7b5aa6", "#b08a1e", "#4a9aa5", "#8c564b", "#7f7f7f")


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory. `records` are those of metrics.jsonl, `state` is "finished", "interrupted" or "running"."""

    path: Path
    recipe: dict[str, Any]
    records: list[dict[str, Any]]
    state: str
    changed: float
    """When it last wrote, in seconds since 1970."""

    @property
    def model(self) -> str:
        """What it started from: the last part of the path."""
        return Path(str(self.recipe.get("model", {}).get("path", "?"))).name

    @property
    def objective(self) -> str:
        """The kind, the preset where there is one, and whether adapters were trained."""
        section, lora = self.recipe.get("objective", {}), self.recipe.get("lora")
        parts = [str(section.get("kind", "orpo")), str(section.get("preset", ""))]
        parts.append(f"lora {lora.get('rank', '')}".strip() if lora is not None else "")
        return " ".join(part for part in parts if part)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def final(self) -> dict[str, float]:
        """The last value of every number that the run wrote."""
        values: dict[str, float] = {}
        for record in self.records:
            values |= {name: value for name, value in record.items() if name != "step" and value is not None}
        return values


def read_metrics(run: Path, file: str = FILE) -> list[dict[str, Any]]:
    """All whole records of a run, in order; [] when there are none."""
    path = run / file
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a run was killed in the middle of this line: nothing after it is whole
    return records


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in these folders, however deep, or that one of them is; those that wrote last come first.

    Raises ConfigError for a folder that does not exist.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; name one that has runs in it, or a run")
        for recipe in sorted(folder.rglob(RECIPE)):
            inside = recipe.relative_to(folder).parts
            if not {"checkpoints"}.intersection(inside) and _is_run(recipe.parent):
                found.setdefault(recipe.parent.resolve(), open_run(recipe.parent))
    return sorted(found.values(), key=lambda run: -run.changed)


def open_run(path: Path) -> Run:
    """The run in a directory. Raises ConfigError where there is none, or its recipe is damaged."""
    if not _is_run(path):
        raise ConfigError(
            f"{path} is not a run: it has no {RECIPE} with {FILE}; `hanlin runs DIR` lists the runs of DIR"
        )
    try:
        recipe = tomllib.loads((path / RECIPE).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path / RECIPE} cannot be read ({error}); copy it from a checkpoint of the run") from None
    log = path / FILE if (path / FILE).exists() else path / RECIPE
    return Run(path, recipe, read_metrics(path), _state(path, log.stat().st_mtime), log.stat().st_mtime)


def _is_run(path: Path) -> bool:
    return (path / RECIPE).is_file() and ((path / FILE).is_file() or (path / _RUNNING).is_file())


@contextmanager
def running(run: Path) -> Iterator[None]:
    """Marks the run as running while the block is. A disk too full for the mark is for the log to complain of."""
    mark = run / _RUNNING
    with suppress(OSError):
        mark.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink(missing_ok=True)


def _state(path: Path, changed: float) -> str:
    if _is_running(path / _RUNNING, changed):
        return "running"
    return "finished" if (path / "config.json").exists() else "interrupted"


def _is_running(mark: Path, changed: float) -> bool:
    try:
        said = json.loads(mark.read_text(encoding="utf-8"))
        host, process = said["host"], int(said["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return time.time() - changed < _QUIET
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and alive
        return True
    return True


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys of the recipes ("training.seed") whose values are not all equal, with each run's; None where it has
    none.
    """
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    values = {key: [recipe.get(key) for recipe in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _flat(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, content in recipe.items():
        if isinstance(content, dict):
            yield from ((f"{section}.{key}", value) for key, value in _flat(content))
        else:
            yield section, content


def plot_runs(runs: Sequence[Run], path: Path) -> Path:
    """Draw the runs' curves over each other, a colour each: training smoothed, held out as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = {key for run in runs for key in run.final}
    curves = [curve for curve in CURVES if known.intersection(curve[1])] or [("Loss", ("loss", "eval_loss"))]
    figure = Figure(figsize=(6 * len(curves), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, (train, held_out)) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for number, run in enumerate(runs):
            color = _COLORS[number % len(_COLORS)]
            steps, values = series(run.records, train)
            axes.plot(steps, smoothed(values), color=color, label=run.path.name)
            axes.plot(*series(run.records, held_out), "o--", color=color, linewidth=0.8, markersize=4)
        axes.set(title=f"{title} (— training, o held out)", xlabel="step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    partial = path.with_name(f".{path.stem}.partial.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, dpi=120)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file with --plot") from None
    return path


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have a number of this name."""
    present = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in present], [record[key] for record in present]


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean that starts unbiased; its memory is a tenth of the run."""
    keep = 1 - 1 / max(1.0, len(values) / 10)
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth
