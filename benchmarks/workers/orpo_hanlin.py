"""Hanlin's side of the ORPO benchmark: the training loop of the product on the given pairs, timed step by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import Clock, answer, matmul_rates, peak_bytes

from hanlin.data.loader import PairOrder
from hanlin.models.config import ModelConfig
from hanlin.models.weights import load_model, parse_dtype
from hanlin.objectives.orpo import OrpoConfig
from hanlin.objectives.scores import PairScore
from hanlin.training.allocator import settle_memory
from hanlin.training.checkpoint import Progress
from hanlin.training.loop import Job, make_optimizer, run
from hanlin.training.recipe import TrainingConfig
from hanlin.types import EncodedPair


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


def step_flops(config: ModelConfig, pairs: Sequence[EncodedPair]) -> float:
    """Operations that these pairs need, the prompt computed once and scored by the NLL."""
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = 2 * config.width * (q_width + kv_width) + 3 * config.width * config.ffn_width
    forward = 0.0
    for pair in pairs:
        p, c, r = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        attended = p**2 / 2 + c * p + c**2 / 2 + r * p + r**2 / 2
        matmuls = 2 * (p + c + r) * (config.num_layers * block + config.vocab_size * config.width)
        forward += matmuls + 4 * config.num_layers * q_width * attended
    return 3 * forward


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on the pairs as `hanlin train` does (same loop, same allocator settings), without checkpoints."""
    settle_memory()
    rows = json.loads(Path(settings["pairs"]).read_text(encoding="utf-8"))
    pairs = [EncodedPair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"]), row["id"]) for row in rows]
    model = load_model(Path(settings["model"]), dtype="float32", device="cpu")
    model.compute_dtype = parse_dtype(settings["compute"])
    config = TrainingConfig(
        batch_pairs=settings["batch_pairs"],
        tokens_per_pass=settings["tokens_per_pass"],
        learning_rate=settings["learning_rate"],
        schedule="linear",
        warmup=0.0,
    )
    order = PairOrder(len(pairs), batch_pairs=config.batch_pairs, epochs=1, seed=0, shuffle=False)
    watch = Watch(Clock(settings["warmup"]))
    job = Job(
        model=model,
        optimizer=make_optimizer(model, config),
        train=pairs,
        held_out=[],
        objective=OrpoConfig(preset="trl", weight=settings["weight"]),
        config=config,
        num_steps=order.num_steps,
        order=order,
        save=lambda progress: Path(),
    )
    watch.clock.lap()
    run(job, Progress(), watch)
    peak = peak_bytes()
    counted = pairs[settings["warmup"] * config.batch_pairs :]
    return {
        **watch.clock.read(),
        "peak_bytes": peak,
        "tokens": sum(pair.num_logical_tokens for pair in pairs),
        "loss": sum(step["loss"] for step in watch.metrics) / len(watch.metrics),
        "grad_norm": watch.metrics[0]["grad_norm"],
        "flops": step_flops(model.config, counted),
        "matmul": matmul_rates(),
    }


if __name__ == "__main__":
    answer(measure)
