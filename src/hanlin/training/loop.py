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
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from hanlin.data.budget import streams
from hanlin.errors import TrainingError
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.training.allocator import release_memory
from hanlin.training.backward import update_in_backward
from hanlin.training.checkpoint import Progress
from hanlin.training.objective import Objective
from hanlin.training.recipe import TrainingConfig
from hanlin.training.rollout import Rollouts
from hanlin.training.schedule import set_learning_rate
from hanlin.training.work import Job, Observer, Work, gathered_in_time, packed_ahead


def run(job: Job, start: Progress, observer: Observer) -> Progress:
    """Train from `start` to the last step, or until interrupted; returns how far it came. The last step is not saved
    here.
    """
    progress = start
    job.model.train()
    job.model.lend(Scratch())
    prepared = packed_ahead if job.rollouts is None else gathered_in_time
    with _interruptible() as interrupted, closing(prepared(job, progress.step)) as works:
        for work in works:
            if work.gathered is not None and work.gathered.alarm:
                raise TrainingError(_stopped(job, progress, work.gathered.alarm, observer))
            progress, metrics = _step(job, progress, work)
            observer.step(progress, job.num_steps, metrics)
            if progress.step == job.num_steps:
                break
            if _is_due(progress.step, job.config.evaluate_every) and job.held_out:
                scores = evaluate(job.model, job.held_out, job.config, objective=job.objective, rollouts=job.rollouts)
                observer.evaluated(progress, scores)
            if interrupted.is_set() or _is_due(progress.step, job.config.save_every):
                observer.saved(job.save(progress))
            if interrupted.is_set():
                break
    job.model.lend(None)
    job.model.zero_grad(set_to_none=True)
    job.model.eval()
    return progress


def _stopped(job: Job, progress: Progress, alarm: str, observer: Observer) -> str:
    """Saves what was learnt so far; says why the run ends and how it may go on."""
    path = job.save(progress)
    observer.saved(path)
    return (
        f"step {progress.step + 1}: {alarm}. Nothing was learnt from these answers; the model before them is in "
        f"{path}, and a run with a higher limit goes on from there (--resume)"
    )


def evaluate(
    model: Transformer,
    examples: Sequence[Any],
    config: TrainingConfig,
    *,
    objective: Objective[Any],
    rollouts: Rollouts | None = None,
) -> list[Any]:
    """Scores of examples under the model, streamed with the recipe's token budget; or of its answers to them."""
    if rollouts is not None:
        return rollouts.score(model, examples)
    assert objective.score is not None
    assert objective.pack_scored is not None
    return objective.score(model, streams(examples, objective.pack_scored, max_tokens=config.tokens_per_pass))


def _step(job: Job, progress: Progress, work: Work) -> tuple[Progress, dict[str, float]]:
    """One step and what is logged of it: of several updates, the last one's loss."""
    began = time.perf_counter() - work.gathering
    numbers: dict[str, float] = {}
    for _ in range(job.objective.updates):
        numbers = _update(job, progress, work)
    if job.model.device.type == "cpu":
        release_memory()
    num_seen, tokens = len(work.examples), sum(example.num_tokens for example in work.examples)
    done = replace(progress, step=progress.step + 1, pairs=progress.pairs + num_seen, tokens=progress.tokens + tokens)
    seconds = time.perf_counter() - began
    metrics = {
        **numbers,
        "epoch": done.pairs / len(job.train),
        "num_tokens": float(done.tokens),
        "tokens_per_second": tokens / seconds,
        "logical_tokens_per_second": sum(batch.num_logical_tokens for batch in work.batches) / seconds,
        f"{job.objective.noun}_per_second": num_seen / seconds,
    }
    if work.gathered is not None:
        metrics |= work.gathered.metrics | {"generation_share": work.gathered.generating / seconds}
    return done, metrics


def _update(job: Job, progress: Progress, work: Work) -> dict[str, float]:
    """One optimizer update: forward and backward over the micro-batches, check, clip, update.

    Nothing waits for the device but one transfer: all numbers of the update, before it.
    """
    config, model = job.config, job.model
    if config.step_in_backward and len(work.batches) == 1:
        return update_in_backward(job, progress, work)
    losses: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for batch in work.batches:
        loss = job.objective.loss(model, batch, work.counts)
        loss.total.backward()
        losses.append(loss.total.detach())
        for name, value in loss.terms.items():
            sums[name] = sums[name] + value if name in sums else value
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
    numbers = torch.stack([norm, *losses, *sums.values()]).tolist()
    grad_norm, values, terms = numbers[0], numbers[1 : 1 + len(losses)], numbers[1 + len(losses) :]
    names = [batch.ids_P for batch in work.batches]
    _check_finite(progress.step + 1, values, names, grad_norm, noun=job.objective.noun)
    rate = set_learning_rate(job.optimizer, config, progress.step, num_steps=job.num_steps)
    job.optimizer.step()
    if model.scratch is not None:
        model.scratch.renew()
    job.optimizer.zero_grad(set_to_none=config.step_in_backward)
    return {
        "loss": sum(values),
        **dict(zip(sums, terms, strict=True)),
        "grad_norm": grad_norm,
        "learning_rate": rate,
    }


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
