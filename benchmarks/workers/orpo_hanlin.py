"""Hanlin's side of the ORPO benchmark: the training loop of the product on the given pairs, timed step by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from worker import Clock, answer, cost

from hanlin.data.loader import PairOrder
from hanlin.models.families import config_from_hf
from hanlin.models.layers import Linear, RMSNorm
from hanlin.models.lora import LoraConfig, add_lora
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, parse_dtype
from hanlin.objectives.orpo import OrpoConfig
from hanlin.objectives.scores import PairScore
from hanlin.training.allocator import settle_memory
from hanlin.training.checkpoint import Progress
from hanlin.training.fit import Fit
from hanlin.training.loop import run
from hanlin.training.objective import Objective, objective_of
from hanlin.training.optim import make_optimizer
from hanlin.training.recipe import TrainingConfig
from hanlin.training.work import Job
from hanlin.types import EncodedPair, Example


class Watch:
    """The loop's observer: a lap a step, and what each step reports."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.metrics: list[dict[str, float]] = []

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self.clock.lap()
        self.metrics.append(metrics)

    def evaluated(self, progress: Progress, scores: Sequence[PairScore]) -> None:
        """Not asked for."""

    def saved(self, path: Path) -> None:
        """Not asked for."""


def read_pairs(settings: Mapping[str, Any]) -> list[EncodedPair]:
    """The pairs of the prepared file, in its order."""
    rows = json.loads(Path(settings["pairs"]).read_text(encoding="utf-8"))
    return [EncodedPair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"]), row["id"]) for row in rows]


def build_model(settings: Mapping[str, Any]) -> Transformer:
    """The model on its device: weights of `weights` dtype, read or random, products in `compute`; adapters,
    checkpointing of every layer and compiled layers if asked. What `hanlin train` would choose by the memory that is
    free is said here, so that every run of a system is alike.
    """
    directory, device = Path(settings["model"]), settings["device"]
    if settings["random_init"]:
        model = random_model(directory, dtype=parse_dtype(settings["weights"]), device=device)
    else:
        model = load_model(directory, dtype=settings["weights"], device=device)
    model.compute_dtype = parse_dtype(settings["compute"])
    if settings["lora"]:
        add_lora(model, LoraConfig(rank=settings["lora"]), seed=0)
    recomputed = model.config.num_layers if settings["checkpointing"] else 0
    Fit(head=settings["head_mode"], recomputed_layers=recomputed, compiled=settings["compile"]).apply(model)
    return model


def random_model(directory: Path, *, dtype: torch.dtype, device: str) -> Transformer:
    """A model of the directory's config with random weights, made where it will run."""
    config = config_from_hf(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Transformer(config)
    torch.set_default_dtype(before)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1 - module.offset)
            elif isinstance(module, Linear | nn.Embedding):
                module.weight.normal_(std=0.02)
    return model


def training_config(settings: Mapping[str, Any]) -> TrainingConfig:
    """What every system is given, in Hanlin's words."""
    return TrainingConfig(
        batch_pairs=settings["batch_pairs"],
        tokens_per_pass=settings["tokens_per_pass"],
        learning_rate=settings["learning_rate"],
        optimizer=settings["optimizer"],
        schedule="linear",
        warmup=0.0,
    )


def train(
    model: Transformer, examples: Sequence[Example], objective: Objective[Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on the examples in their order, as `hanlin train` does, without checkpoints: what it cost, the mean loss
    and the first gradient norm.
    """
    config = training_config(settings)
    order = PairOrder(len(examples), batch_pairs=config.batch_pairs, epochs=1, seed=0, shuffle=False)
    watch = Watch(Clock(settings["warmup"], device=settings["device"]))
    watch.clock.watch(model.embed)
    job = Job(
        model=model,
        optimizer=make_optimizer(model, config),
        train=examples,
        held_out=[],
        objective=objective,
        config=config,
        num_steps=order.num_steps,
        order=order,
        save=lambda progress, on_saved: Path(),
    )
    watch.clock.lap()
    run(job, Progress(), watch)
    return {
        **cost(watch.clock, settings["device"]),
        "loss": sum(step["loss"] for step in watch.metrics) / len(watch.metrics),
        "grad_norm": watch.metrics[0]["grad_norm"],
    }


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on the pairs with the loop and the allocator settings of `hanlin train`."""
    settle_memory()
    pairs = read_pairs(settings)
    model = build_model(settings)
    objective = objective_of(OrpoConfig(preset=settings["preset"], weight=settings["weight"]))
    return {
        **train(model, pairs, objective, settings),
        "tokens": sum(pair.num_logical_tokens for pair in pairs),
    }


if __name__ == "__main__":
    answer(measure)
