"""What the loop works on: the `Job` of a run, and the `Work` of each of its steps.

For most objectives the next step's streams are packed in the background while one is computed. Where a model learns
from its own answers nothing can be packed ahead: these are gathered when a step begins.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from hanlin.data.loader import Order
from hanlin.errors import ConfigError, TrainingError
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer
from hanlin.training.checkpoint import Progress
from hanlin.training.objective import Objective
from hanlin.training.parallel import ALONE, World
from hanlin.training.recipe import TrainingConfig
from hanlin.training.rollout import Gathered, Rollouts
from hanlin.training.shares import num_streams, shared_streams
from hanlin.types import Batch, Counts, Example


class Observer(Protocol):
    """Is told what happens; draws progress bars, writes logs."""

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None: ...
    def evaluated(self, progress: Progress, scores: Sequence[Any]) -> None: ...
    def saved(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that the loop works on. `save` writes a checkpoint of the given progress and returns where. It may be whole
    only later (training/saving.py): then the callable is told.
    """

    model: Transformer
    optimizer: torch.optim.Optimizer
    train: Sequence[Example]
    held_out: Sequence[Example]
    objective: Objective[Any]
    config: TrainingConfig
    num_steps: int
    order: Order
    save: Callable[[Progress, Callable[[Path], None]], Path]
    rollouts: Rollouts | None = None
    world: World = ALONE
    part: Part = WHOLE  # of every layer, which this rank computes


def count_steps(order: Order, examples: Sequence[Example], config: TrainingConfig, *, noun: str = "pairs") -> int:
    """Optimizer steps of the run: what `epochs` gives, unless `steps` or `tokens` say otherwise."""
    num_steps = config.steps if config.steps is not None else order.num_steps
    if num_steps == 0:
        of = f"{len(examples)} {noun} is less than one {noun[:-1]}"
        raise ConfigError(f"training.epochs = {config.epochs:g} of {of}; raise it")
    if config.tokens is None:
        return num_steps
    tokens = 0
    for step in range(num_steps):
        tokens += sum(examples[index].num_tokens for index in order.step(step))
        if tokens >= config.tokens:
            return step + 1
    return num_steps


@dataclass(frozen=True, slots=True)
class Work:
    """One optimizer step, ready to compute: its examples and what they score on all ranks, and the streams of this one.

    The last `num_idle` of them are there for the other ranks' sake (training/shares.py): they must teach nothing.
    """

    examples: Sequence[Example]
    counts: Counts
    batches: list[Batch]
    num_idle: int = 0
    gathered: Gathered | None = None
    gathering: float = 0.0  # seconds


def packed_ahead(job: Job, first: int) -> Generator[Work]:
    """The work of each step from `first` on; the next one is packed while one is computed."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        upcoming = ahead.submit(_packed, job, first)
        for step in range(first, job.num_steps):
            work = upcoming.result()
            if step + 1 < job.num_steps:
                upcoming = ahead.submit(_packed, job, step + 1)
            yield work


def _packed(job: Job, step: int) -> Work:
    return _work(job, _examples(job, step))


def gathered_in_time(job: Job, first: int) -> Generator[Work]:
    """The work of each step from `first` on, made when it is asked for: the model answers as it is then."""
    assert job.rollouts is not None
    for step in range(first, job.num_steps):
        began = time.perf_counter()
        gathered = job.rollouts.gather(job.model, _examples(job, step), step)
        work = _work(job, gathered.examples)
        yield replace(work, gathered=gathered, gathering=time.perf_counter() - began)


def _examples(job: Job, step: int) -> list[Any]:
    return [job.train[index] for index in job.order.step(step)]


def _work(job: Job, examples: Sequence[Example]) -> Work:
    budget = job.config.tokens_per_pass
    packed = shared_streams(examples, job.objective.pack, job.world.data, max_tokens=budget, pad=job.model.compiled)
    batches = [batch.to(job.model.device) for _, batch in packed]
    own = num_streams(examples, job.world.data, max_tokens=budget)[job.world.data.rank]
    return Work(examples, job.objective.count(examples), batches, len(batches) - own)


def not_finite(
    what: str, step: int, ids: Sequence[str], *, noun: str, state: str = "nothing was updated"
) -> TrainingError:
    """The error of a step whose loss or gradient is inf or nan: names the examples that it was computed from."""
    return TrainingError(
        f"step {step}: the {what} is not finite; {state}. {noun.capitalize()} of this step: {', '.join(ids[:20])}. "
        "Look at these rows, lower training.learning_rate, or compute in float32; earlier checkpoints are whole "
        "(--resume)"
    )
