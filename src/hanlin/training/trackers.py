"""Who is told of a run besides metrics.jsonl: TensorBoard, Weights & Biases, trackio; and what the model says in it.

Each is an extra, imported when a recipe's [track] asks for it. Names are those that TRL's runs have there: what
metrics.jsonl calls `eval_loss` is `eval/loss`, and `loss` is `train/loss`. Surprising: a tracker that fails, without a
network or with a full disk, costs one warning and is left alone from then on; it never stops the run.
"""

import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from hanlin.config import Section
from hanlin.errors import ConfigError
from hanlin.models.transformer import Transformer

Service = Literal["tensorboard", "wandb", "trackio"]


class TrackConfig(Section):
    """The [track] section: who else is told of the run, and which questions it answers on the way. All of it may change
    when a run is resumed.
    """

    to: tuple[Service, ...] = ()
    """Each needs its extra: pip install "hanlin[tensorboard]", "hanlin[wandb]" or "hanlin[trackio]"."""
    project: str = "hanlin"
    """The project of Weights & Biases and trackio."""
    name: str | None = None
    """What the run is called there; its directory's name when left out."""
    samples: int = Field(default=0, ge=0, le=8)
    """How many fixed prompts, Chinese and English by turns, the model answers before and after the run and every
    `training.evaluate_every` steps: to samples.jsonl, with the language measures. Under [lora] the merged weights take
    memory meanwhile.
    """
    sample_tokens: int = Field(default=128, gt=0)
    """The longest of these answers."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A fixed prompt and what the model says now; `ended` by itself, not at the limit."""

    prompt: str
    answer: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at the model gave: its answers, and what is measured of them, under names of metrics.jsonl."""

    samples: tuple[Sample, ...]
    numbers: dict[str, float]


Look = Callable[[Transformer], Looked]
"""Asks the model its fixed prompts, greedily: the front door makes it of generation and evaluation."""


class Tracker(Protocol):
    """One service. Numbers have the names of metrics.jsonl."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def show(self, step: int, samples: Sequence[Sample]) -> None: ...
    def close(self) -> None: ...


def tracked_name(name: str) -> str:
    """What TRL calls it there (transformers, integrations/integration_utils.py, rewrite_logs)."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def check_trackers(config: TrackConfig) -> None:
    """Raise ConfigError where a service is asked for and not installed."""
    for name in config.to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'track.to names {name}, which is not installed: pip install "hanlin[{name}]", or leave it out; '
                "metrics.jsonl is written in any case"
            )


def open_trackers(
    config: TrackConfig, run: Path, settings: Mapping[str, Any], *, first_step: int, on_note: Callable[[str], None]
) -> list[Tracker]:
    """The services of a run that goes on after `first_step`; `settings` is its recipe. One that cannot start is told of
    and left out. Raises ConfigError as `check_trackers`.
    """
    check_trackers(config)
    about = _About(run, config.project, config.name or run.resolve().name, dict(settings), first_step)
    return [_Guarded(name, SERVICES[name], about, on_note) for name in config.to]


@dataclass(frozen=True, slots=True)
class _About:
    """What a service is told when it starts."""

    run: Path
    project: str
    name: str
    settings: dict[str, Any]
    first_step: int


class _Guarded:
    """A tracker whose first failure is told of and is its last."""

    def __init__(
        self, name: str, start: Callable[[_About], Tracker], about: _About, on_note: Callable[[str], None]
    ) -> None:
        self._name, self._on_note = name, on_note
        self._tracker: Tracker | None = None
        self._attempt(lambda: self._start(start, about))

    def _start(self, start: Callable[[_About], Tracker], about: _About) -> None:
        self._tracker = start(about)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(lambda: tracker.log(step, numbers))

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(lambda: tracker.show(step, samples))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(tracker.close)
        self._tracker = None

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # somebody else's service: whatever breaks in it must not stop the run
            self._tracker = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._on_note(f"{self._name} failed ({reason}): the run goes on without it, metrics.jsonl has everything")


class _TensorBoard:
    """Event files in RUN/tensorboard; a resumed run hides what it repeats."""

    def __init__(self, about: _About) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(about.run / "tensorboard"), purge_step=about.first_step + 1)
        self._writer.add_text("recipe", _as_code(about.settings), about.first_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(tracked_name(name), value, step)
        self._writer.flush()

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        for number, sample in enumerate(samples, 1):
            self._writer.add_text(f"samples/{number}", f"**{sample.prompt}**\n\n{sample.answer}", step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """One run there for each run directory, which a resumed run goes on with."""

    def __init__(self, about: _About) -> None:
        self._module = import_module("wandb")
        self._run = self._module.init(
            project=about.project,
            name=about.name,
            dir=str(about.run),
            config=about.settings,
            id=_kept_id(about.run / "wandb.id"),
            resume="allow",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({tracked_name(name): value for name, value in numbers.items()}, step=step)

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        self._run.log({"samples": self._module.Table(columns=_COLUMNS, data=_rows(samples))}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run in trackio's database on this machine, or in the Space that its environment names."""

    def __init__(self, about: _About) -> None:
        self._module = import_module("trackio")
        self._module.init(project=about.project, name=about.name, config=about.settings, resume="allow", embed=False)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._module.log({tracked_name(name): value for name, value in numbers.items()}, step=step)

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        lines = (f"**{sample.prompt}**\n\n{sample.answer}" for sample in samples)
        self._module.log({"samples": self._module.Markdown("\n\n---\n\n".join(lines))}, step=step)

    def close(self) -> None:
        self._module.finish()


SERVICES: dict[Service, Callable[[_About], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "trackio": _Trackio,
}
_COLUMNS = ["prompt", "answer", "ended"]


def _rows(samples: Sequence[Sample]) -> list[list[Any]]:
    return [[sample.prompt, sample.answer, sample.ended] for sample in samples]


def _as_code(settings: Mapping[str, Any]) -> str:
    """Markdown of a block of JSON: indented lines."""
    text = json.dumps(settings, ensure_ascii=False, indent=2, default=str)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _kept_id(path: Path) -> str:
    """The id in a file, made with it where there is none; not from the random numbers that a run depends on."""
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
