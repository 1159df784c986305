"""Learning-rate schedules, as factors of the peak rate; step numbers count from 0 and follow transformers' formulas
exactly.
"""

import math
from typing import Literal

import torch

from hanlin.training.recipe import TrainingConfig


def learning_rate_factor(
    step: int, *, num_steps: int, warmup: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Factor for optimizer step `step` of `num_steps`: linear from 0 over ceil(warmup * num_steps) steps, then the
    schedule.

    The first warm-up step has rate 0, as in transformers' `get_cosine_schedule_with_warmup`: published recipes were run
    so.
    """
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return step / max(1, num_warmup)
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return max(0.0, 1 - progress) if schedule == "linear" else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, *, num_steps: int) -> float:
    """Give an optimizer the rate of a step; returns it."""
    factor = learning_rate_factor(step, num_steps=num_steps, warmup=config.warmup, schedule=config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    return config.learning_rate * factor
