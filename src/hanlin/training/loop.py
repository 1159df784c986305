"""The heart: one loop over optimizer steps, the same for every objective.

What a step will score is counted before its first forward pass, and every micro-batch divides by those counts, so the
result does not depend on how the step is split. The order of the data comes from a seed and the step number alone;
nothing else is remembered, so a run that was killed goes on bit for bit. Ctrl-C (or SIGTERM) lets the step finish,
saves and returns.

With several ranks each computes its share of a step's streams; gradients and numbers are summed over them, and all else
is the same everywhere (training/parallel.py, training/shares.py).
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hanlin.errors import TrainingError
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.training.allocator import release_memory
from hanlin.training.backward import update_in_backward
from hanlin.training.checkpoint import Progress
from hanlin.training.interruption import Interruption, interruptible
from hanlin.training.objective import Objective
from hanlin.training.parallel import ALONE, World, clip_gradients, put_away, sum_gradients
from hanlin.training.recipe import TrainingConfig
from hanlin.training.rollout import Rollouts
from hanlin.training.schedule import set_learning_rate
from hanlin.training.shares import Noted, shared_streams, together
from hanlin.training.work import Job, Observer, Work, gathered_in_time, not_finite, packed_ahead
from hanlin.types import Loss


def run(job: Job, start: Progress, observer: Observer) -> Progress:
    """Train from `start` to the last step, or until interrupted; returns how far it came. The last step is not saved
    here.
    """
    progress = start
    job.model.train()
    job.model.lend(Scratch())
    prepared = packed_ahead if job.rollouts is None else gathered_in_time
    with interruptible(job.world) as stop, closing(prepared(job, progress.step)) as works:
        for work in works:
            if work.gathered is not None and work.gathered.alarm:
                raise TrainingError(_stopped(job, progress, work.gathered.alarm, observer))
            progress, metrics = _step(job, progress, work, stop)
            observer.step(progress, job.num_steps, metrics)
            if progress.step == job.num_steps:
                break
            if _is_due(progress.step, job.config.evaluate_every) and job.held_out:
                own = {"objective": job.objective, "rollouts": job.rollouts, "world": job.world}
                observer.evaluated(progress, evaluate(job.model, job.held_out, job.config, **own))
            if stop.is_agreed or _is_due(progress.step, job.config.save_every):
                job.save(progress, observer.saved)
            if stop.is_agreed:
                break
    job.model.lend(None)
    job.model.zero_grad(set_to_none=True)
    job.model.eval()
    return progress


def _stopped(job: Job, progress: Progress, alarm: str, observer: Observer) -> str:
    """Saves what was learnt so far; says why the run ends and how it may go on."""
    path = job.save(progress, observer.saved)
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
    world: World = ALONE,
) -> list[Any]:
    """Scores of examples under the model, streamed with the recipe's token budget; or of its answers to them.

    Several ranks divide the examples; all of them get all scores.
    """
    if rollouts is not None:
        return rollouts.score(model, examples)
    assert objective.score is not None
    assert objective.pack_scored is not None
    packed = Noted(shared_streams(examples, objective.pack_scored, world.data, max_tokens=config.tokens_per_pass))
    scores = objective.score(model, packed)
    put_away(model)
    return together(world.data, zip(packed.indices, scores, strict=True))


def _step(job: Job, progress: Progress, work: Work, stop: Interruption) -> tuple[Progress, dict[str, float]]:
    """One step and what is logged of it: of several updates, the last one's loss."""
    began = time.perf_counter() - work.gathering
    numbers: dict[str, float] = {}
    for _ in range(job.objective.updates):
        numbers = _update(job, progress, work, stop)
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
        "logical_tokens_per_second": sum(example.num_logical_tokens for example in work.examples) / seconds,
        f"{job.objective.noun}_per_second": num_seen / seconds,
    }
    if work.gathered is not None:
        metrics |= work.gathered.metrics | {"generation_share": work.gathered.generating / seconds}
    return done, metrics


def _update(job: Job, progress: Progress, work: Work, stop: Interruption) -> dict[str, float]:
    """One optimizer update: forward and backward over the micro-batches, check, clip, update.

    Nothing waits for the device but one transfer: all numbers of the update, before it. With several ranks they are
    summed first; then whoever was asked to stop tells the others.
    """
    config, model, world = job.config, job.model, job.world
    if config.step_in_backward and len(work.batches) == 1:
        return update_in_backward(job, progress, work)
    losses: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(work.batches):
        loss = job.objective.loss(model, batch, work.counts)
        if number >= len(work.batches) - work.num_idle:
            loss = Loss(0 * loss.total, {name: 0 * value for name, value in loss.terms.items()})
        loss.total.backward()
        losses.append(loss.total.detach())
        for name, value in loss.terms.items():
            sums[name] = sums[name] + value if name in sums else value
    sum_gradients(model, world, job.part)
    norm = clip_gradients(model, config.clip or math.inf, world, job.part)
    own, asked = torch.stack(losses).double(), norm.new_full((), float(stop.was_asked))
    totals = world.sum(torch.stack([own.sum(), asked.double(), *(term.double() for term in sums.values())]))
    totals /= world.team.size  # each of a team says the same
    grad_norm, loss, num_asked, *numbers = torch.cat([norm[None], totals, own]).tolist()
    terms, values = numbers[: len(sums)], numbers[len(sums) :]
    stop.agree(num_asked > 0)
    if not math.isfinite(loss + grad_norm):
        raise _not_finite(progress.step + 1, world, values, work, noun=job.objective.noun)
    rate = set_learning_rate(job.optimizer, config, progress.step, num_steps=job.num_steps)
    job.optimizer.step()
    if model.scratch is not None:
        model.scratch.renew()
    job.optimizer.zero_grad(set_to_none=world.sharded or config.step_in_backward)
    return {
        "loss": loss,
        **dict(zip(sums, terms, strict=True)),
        "grad_norm": grad_norm,
        "learning_rate": rate,
    }


def _not_finite(step: int, world: World, losses: Sequence[float], work: Work, *, noun: str) -> TrainingError:
    """What is said, on every rank, when anything is inf or nan: the examples."""
    ids = [batch.ids_P for batch in work.batches]
    here = [names for loss, names in zip(losses, ids, strict=True) if not math.isfinite(loss)]
    bad, all_ids = (list(chain(*found)) for found in zip(*world.gather((here, ids)), strict=True))
    named = list(dict.fromkeys(chain(*(bad or all_ids))))
    return not_finite("loss" if bad else "gradient norm", step, named, noun=noun)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
