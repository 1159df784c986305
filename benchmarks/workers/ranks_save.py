"""How long a save of several ranks stops training, next to one copy of the whole state: run under torchrun.

Arguments: a recipe, and the file for rank 0's answer (JSON). One step fills the optimizer's states; then the run is
saved three times, each time waiting until the checkpoint is whole.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hanlin.config import load_recipe
from hanlin.training.parallel import joined
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, open_material, run_directory

_SAVES = 3


def copy_seconds(sizes: list[tuple[int, torch.dtype]]) -> float:
    """Copying tensors of these sizes into memory that was there before, as a second save does."""
    pairs = [(torch.ones(size, dtype=dtype), torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    for given, place in pairs:
        place.copy_(given)
    began = time.perf_counter()
    for given, place in pairs:
        place.copy_(given)
    return time.perf_counter() - began


def main() -> None:
    path, answer = map(Path, sys.argv[1:3])
    recipe = load_recipe(Recipe, path)
    found: dict[str, Any] = {"blocked": [], "whole": []}
    with joined(recipe.parallel, recipe.training.device) as world:
        with world.first_of_machine():
            material = open_material(recipe)
        session = Session(material, run_directory(recipe, path), resume=False, world=world)
        session.train()
        for number in range(_SAVES):
            world.wait()
            began = time.perf_counter()
            session.save(session.progress, lambda path: None)
            found["blocked"].append(max(world.gather(time.perf_counter() - began)))
            session.settle()
            found["whole"].append(time.perf_counter() - began)
            if number == 0 and world.speaks:
                trained = [one for one in session.model.parameters() if one.requires_grad]
                states = [(one.numel(), one.dtype) for one in trained for _ in range(3)]  # weights and two moments
                found["state_bytes"] = sum(size * dtype.itemsize for size, dtype in states)
                found["copy"] = copy_seconds(states)
        if world.speaks:
            answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
