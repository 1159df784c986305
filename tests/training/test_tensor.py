"""Ranks that compute a layer together are one rank: the same losses, gradient norms and weights, and checkpoints that
any number of ranks reads.
"""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import hanlin
from hanlin.training.checkpoint import checkpoints
from tiny_objectives import recipe_of
from tiny_ranks import assert_alike, train_ranks, weights
from tiny_run import write_model, write_recipe

PAIR = "parallel.tensor=2"
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # objective, family, ranks, sections
    "one key/value head": ("orpo", "gemma", 2, {}),
    "post-norms and caps": ("orpo", "gemma2", 2, {"training": {"recomputed_layers": 1}}),
    "norms of queries and keys": ("sft", "gemma3", 2, {}),
    "two of two key/value heads": ("sft", "llama", 2, {}),
    "biases, four ranks for two heads": ("orpo", "qwen2", 4, {"parallel": {"tensor": 4}}),
    "two teams": ("orpo", "gemma", 4, {}),
    "adapters": ("orpo", "gemma", 2, {"lora": {"rank": 2}}),
    "adapters on divided heads": ("sft", "qwen2", 4, {"lora": {"rank": 3}}),
    "frozen layers": ("dpo", "smollm2", 4, {"training": {"frozen_layers": 1}}),
    "a reward model": ("reward", "gemma2", 2, {}),
}


def recipe_for(folder: Path, name: str, family: str, **sections: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    write_model(folder / "model", family=family)
    training = {"steps": 3, "save_every": 2, "keep_last": 9} | sections.pop("training", {})
    make = write_recipe if name == "orpo" else lambda *given, **changes: recipe_of(given[0], name, **changes)
    return make(folder, training=training, **sections)


@pytest.mark.parametrize("name", CASES)
def test_a_team_learns_what_one_process_learns(tmp_path: Path, name: str):
    """Three steps and the held-out examples around them; checkpoints and the finished model are whole."""
    objective, family, size, sections = CASES[name]
    recipe = recipe_for(tmp_path, objective, family, **{"parallel": {"tensor": 2}, **sections})
    train_ranks(recipe, size)
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    assert_alike(one, tmp_path / "run")
    [path] = checkpoints(tmp_path / "run")
    mine, theirs = weights(path), weights(one / "checkpoints" / path.name)
    assert mine.keys() == theirs.keys()
    assert all((tensor - theirs[key]).norm() <= 1e-5 * tensor.norm() for key, tensor in mine.items())
    if "lora" in sections:
        mine, theirs = (
            safetensors.torch.load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, tmp_path / "run")
        )
        assert all((tensor - theirs[key]).norm() <= 1e-5 * tensor.norm() for key, tensor in mine.items())
