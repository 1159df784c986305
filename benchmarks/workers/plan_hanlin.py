"""A run of a recipe as `hanlin train` does it, beside what `hanlin train --dry-run` says of it: bytes and seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import Clock, answer, peak_bytes

from hanlin.config import load_recipe
from hanlin.training.allocator import settle_memory
from hanlin.training.checkpoint import Progress
from hanlin.training.plan import make_plan
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, open_material


class Laps:
    """The loop's observer: a lap a step, and the share of it that sampled answers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sampling: list[float] = []

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self.clock.lap()
        self.sampling.append(metrics.get("generation_share", 0.0))

    def evaluated(self, progress: Progress, scores: Sequence[Any]) -> None:
        """Not asked for."""

    def saved(self, path: Path) -> None:
        """Not asked for."""


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plan, then train to the end and save the model. The first step is a warm-up."""
    settle_memory()  # before the plan's products: oneDNN reads its limit once
    material = open_material(load_recipe(Recipe, Path(settings["recipe"])))
    plan = make_plan(material)
    planned = {"planned_bytes": plan.memory.peak, "planned_seconds": (plan.seconds or 0.0) / plan.num_steps}
    laps = Laps(Clock(0))
    session = Session(material, Path(settings["directory"]), resume=False)
    laps.clock.lap()
    session.train(laps)
    trained = peak_bytes()
    session.finish()
    times = laps.clock.read()
    assert plan.speed is not None
    return {
        **planned,
        "parts": dict(plan.memory.parts()),
        "lines": list(plan.lines()),
        "tokens": plan.stream_tokens / plan.num_steps,
        "peak_bytes": peak_bytes(),
        "trained_bytes": trained,
        "seconds": times["seconds"][1:],
        "cpu_seconds": times["cpu_seconds"][1:],
        "work": {"flops": plan.flops / plan.num_steps, "traffic": plan.traffic / plan.num_steps},
        "speed": {"products": plan.speed.products, "bandwidth": plan.speed.bandwidth},
        "sampling": laps.sampling[1:],
    }


if __name__ == "__main__":
    answer(measure)
