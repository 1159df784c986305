"""The heart: one loop over optimizer steps, the same for every objective.

What a step will score is counted before its first forward pass, and every micro-batch divides by those counts, so the
result does not depend on how the step is split. The order of the data comes from a seed and the step number alone;
nothing else is remembered, so a run that was killed goes on bit for bit. Ctrl-C (or SIGTERM) lets the step finish,
saves and returns.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from hanlin.data.budget import streams
from hanlin.data.loader import Order
from hanlin.errors import ConfigError, TrainingError
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.training.allocator import release_memory
from hanlin.training.checkpoint import Progress
from hanlin.training.objective import Objective
from hanlin.training.recipe import TrainingConfig
from hanlin.training.schedule import learning_rate_factor
from hanlin.types import Batch, Counts, Example


class Observer(Protocol):
    """Is told what happens; draws progress bars, writes logs."""

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None: ...
    def evaluated(self, progress: Progress, scores: Sequence[Any]) -> None: ...
    def saved(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that the loop works on. `save` writes a checkpoint of the given progress and returns where."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    train: Sequence[Example]
    held_out: Sequence[Example]
    objective: Objective[Any]
    config: TrainingConfig
    num_steps: int
    order: Order
    save: Callable[[Progress], Path]


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
class _Work:
    """One optimizer step, ready to compute: its examples, what they score, and their streams."""

    examples: list[Example]
    counts: Counts
    batches: list[Batch]


def run(job: Job, start: Progress, observer: Observer) -> Progress:
    """Train from `start` to the last step, or until interrupted; returns how far it came. The last step is not saved
    here. The next step's streams are packed while one is computed.
    """
    progress = start
    job.model.train()
    job.model.lend(Scratch())
    with _interruptible() as interrupted, ThreadPoolExecutor(max_workers=1) as ahead:
        upcoming = ahead.submit(_work, job, progress.step)
        while progress.step < job.num_steps:
            work = upcoming.result()
            if progress.step + 1 < job.num_steps:
                upcoming = ahead.submit(_work, job, progress.step + 1)
            progress, metrics = _step(job, progress, work)
            observer.step(progress, job.num_steps, metrics)
            if progress.step == job.num_steps:
                break
            if _is_due(progress.step, job.config.evaluate_every) and job.held_out:
                observer.evaluated(progress, evaluate(job.model, job.held_out, job.config, objective=job.objective))
            if interrupted.is_set() or _is_due(progress.step, job.config.save_every):
                observer.saved(job.save(progress))
            if interrupted.is_set():
                break
    job.model.lend(None)
    job.model.zero_grad(set_to_none=True)
    job.model.eval()
    return progress


def _work(job: Job, step: int) -> _Work:
    examples = [job.train[index] for index in job.order.step(step)]
    packed = streams(examples, job.objective.pack, max_tokens=job.config.tokens_per_pass, pad=job.model.compiled)
    batches = [batch.to(job.model.device) for _, batch in packed]
    return _Work(examples, job.objective.count(examples), batches)


def evaluate(
    model: Transformer, examples: Sequence[Example], config: TrainingConfig, *, objective: Objective[Any]
) -> list[Any]:
    """Scores of examples under the model, streamed with the recipe's token budget."""
    return objective.score(model, streams(examples, objective.pack_scored, max_tokens=config.tokens_per_pass))


def _step(job: Job, progress: Progress, work: _Work) -> tuple[Progress, dict[str, float]]:
    """One optimizer step: forward and backward over its micro-batches, check, clip, update.

    Nothing waits for the device but one transfer: all numbers of the step, before the update.
    """
    began = time.perf_counter()
    config, model = job.config, job.model
    losses: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for batch in work.batches:
        loss = job.objective.loss(model, batch, work.counts)
        loss.total.backward()
        losses.append(loss.total.detach())
        for name, value in loss.terms.items():
            sums[name] = sums[name] + value if name in sums else value
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    numbers = torch.stack([norm, *losses, *sums.values()]).tolist()
    grad_norm, values, terms = numbers[0], numbers[1 : 1 + len(losses)], numbers[1 + len(losses) :]
    names = [batch.ids_P for batch in work.batches]
    _check_finite(progress.step + 1, values, names, grad_norm, noun=job.objective.noun)
    factor = learning_rate_factor(
        progress.step, num_steps=job.num_steps, warmup=config.warmup, schedule=config.schedule
    )
    for group in job.optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    job.optimizer.step()
    if model.scratch is not None:
        model.scratch.renew()
    job.optimizer.zero_grad(set_to_none=False)
    if model.device.type == "cpu":
        release_memory()
    num_seen, tokens = len(work.examples), sum(example.num_tokens for example in work.examples)
    done = replace(progress, step=progress.step + 1, pairs=progress.pairs + num_seen, tokens=progress.tokens + tokens)
    seconds = time.perf_counter() - began
    metrics = {
        "loss": sum(values),
        **dict(zip(sums, terms, strict=True)),
        "grad_norm": grad_norm,
        "learning_rate": config.learning_rate * factor,
        "epoch": done.pairs / len(job.train),
        "num_tokens": float(done.tokens),
        "tokens_per_second": tokens / seconds,
        "logical_tokens_per_second": sum(batch.num_logical_tokens for batch in work.batches) / seconds,
        f"{job.objective.noun}_per_second": num_seen / seconds,
    }
    return done, metrics


def _check_finite(
    step: int, losses: Sequence[float], ids: Sequence[tuple[str, ...]], norm: float, *, noun: str
) -> None:
    """Stop before the update when anything is inf or nan, naming the examples."""
    bad = [names for loss, names in zip(losses, ids, strict=True) if not math.isfinite(loss)]
    if not bad and math.isfinite(norm):
        return
    named = [name for names in (bad or ids) for name in names]
    what = "loss" if bad else "gradient norm"
    raise TrainingError(
        f"step {step}: the {what} is not finite; nothing was updated. {noun.capitalize()} of this step: "
        f"{', '.join(named[:20])}. "
        "Look at these rows, lower training.learning_rate, or compute in float32; earlier checkpoints are whole "
        "(--resume)"
    )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
