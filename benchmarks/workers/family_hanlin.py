"""Hanlin's side of the benchmark of SFT and reward models: the training loop of the product, timed step by step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_hanlin import Watch, build_model, read_pairs, training_config
from worker import Clock, answer, cost

from hanlin.data.loader import PairOrder
from hanlin.models.reward import load_reward_model
from hanlin.models.weights import parse_dtype
from hanlin.objectives.next_token import SftConfig
from hanlin.objectives.reward import RewardConfig
from hanlin.training.allocator import settle_memory
from hanlin.training.checkpoint import Progress
from hanlin.training.fit import Fit
from hanlin.training.loop import run
from hanlin.training.objective import objective_of
from hanlin.training.optim import make_optimizer
from hanlin.training.work import Job
from hanlin.types import Tokens


def read_texts(settings: Mapping[str, Any]) -> list[Tokens]:
    """The conversations of the prepared file, in its order."""
    rows = json.loads(Path(settings["pairs"]).read_text(encoding="utf-8"))
    return [Tokens(tuple(row["ids"]), tuple(map(bool, row["scored"])), row["id"]) for row in rows]


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on the examples as `hanlin train` does, without checkpoints."""
    settle_memory()
    if settings["objective"] == "reward":
        examples, config = read_pairs(settings), RewardConfig(kind="reward")
        model = load_reward_model(settings["model"], dtype=settings["weights"], device=settings["device"])
        model.compute_dtype = parse_dtype(settings["compute"])
        Fit(head="fast", recomputed_layers=0, compiled=False).apply(model)
    else:
        examples, config = read_texts(settings), SftConfig(kind="sft")
        model = build_model(settings)
    training = training_config(settings)
    order = PairOrder(len(examples), batch_pairs=training.batch_pairs, epochs=1, seed=0, shuffle=False)
    watch = Watch(Clock(settings["warmup"], device=settings["device"]))
    watch.clock.watch(model.embed)
    job = Job(
        model=model,
        optimizer=make_optimizer(model, training),
        train=examples,
        held_out=[],
        objective=objective_of(config),
        config=training,
        num_steps=order.num_steps,
        order=order,
        save=lambda progress: Path(),
    )
    watch.clock.lap()
    run(job, Progress(), watch)
    logical, size = [one.num_logical_tokens for one in examples], training.batch_pairs
    return {
        **cost(watch.clock, settings["device"]),
        "real": [sum(logical[first : first + size]) for first in range(0, len(logical), size)][settings["warmup"] :],
        "num_parameters": sum(one.numel() for one in model.parameters()),
        "loss": sum(step["loss"] for step in watch.metrics) / len(watch.metrics),
        "grad_norm": watch.metrics[0]["grad_norm"],
    }


if __name__ == "__main__":
    answer(measure)
