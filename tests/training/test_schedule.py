"""Learning-rate factors against transformers' own schedules."""

from itertools import pairwise

import pytest
import torch
import transformers

from hanlin.training.schedule import learning_rate_factor

THEIRS = {
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "linear": transformers.get_linear_schedule_with_warmup,
    "constant": transformers.get_constant_schedule_with_warmup,
}


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(("num_steps", "warmup"), [(50, 0.1), (50, 0.0), (7, 0.5), (1, 0.0), (3, 0.9), (33, 0.05)])
def test_factors_are_transformers(schedule, num_steps: int, warmup: float):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    arguments = transformers.TrainingArguments("unused", warmup_steps=warmup, use_cpu=True)
    counts = {"num_warmup_steps": arguments.get_warmup_steps(num_steps)}
    if schedule != "constant":
        counts["num_training_steps"] = num_steps
    (theirs,) = THEIRS[schedule](optimizer, **counts).lr_lambdas
    for step in range(num_steps):
        ours = learning_rate_factor(step, num_steps=num_steps, warmup=warmup, schedule=schedule)
        assert ours == pytest.approx(theirs(step), abs=1e-12)


def test_warm_up_starts_at_zero_and_ends_at_the_peak():
    factors = [learning_rate_factor(step, num_steps=20, warmup=0.2, schedule="cosine") for step in range(20)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(later < earlier for earlier, later in pairwise(factors[4:]))
