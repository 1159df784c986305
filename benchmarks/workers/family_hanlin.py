"""Hanlin's side of the benchmark of SFT and reward models: the training loop of the product, timed step by step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_hanlin import build_model, read_pairs, train
from worker import answer

from hanlin.models.reward import load_reward_model
from hanlin.models.weights import parse_dtype
from hanlin.objectives.next_token import SftConfig
from hanlin.objectives.reward import RewardConfig
from hanlin.training.allocator import settle_memory
from hanlin.training.fit import Fit
from hanlin.training.objective import objective_of
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
    measured = train(model, examples, objective_of(config), settings)
    logical, size = [one.num_logical_tokens for one in examples], settings["batch_pairs"]
    return {
        **measured,
        "real": [sum(logical[first : first + size]) for first in range(0, len(logical), size)][settings["warmup"] :],
        "num_parameters": sum(one.numel() for one in model.parameters()),
    }


if __name__ == "__main__":
    answer(measure)
