"""Ranks that compute a layer together are one rank: the same losses, gradient norms and weights, and checkpoints that
any number of ranks reads.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import hanlin
from hanlin.config import load_recipe
from hanlin.errors import ConfigError
from hanlin.training.checkpoint import checkpoints
from hanlin.training.parallel import World
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, open_material
from tiny_objectives import recipe_of
from tiny_ranks import assert_alike, assert_equal, join_ranks, numbers, resumable, start_ranks, train_ranks, weights
from tiny_run import write_model, write_recipe

PAIR = "parallel.tensor=2"
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # objective, family, ranks, sections
    "one key/value head": ("orpo", "gemma", 2, {}),
    "post-norms and caps": ("orpo", "gemma2", 2, {"training": {"recomputed_layers": 1}}),
    "a key/value head for each": ("sft", "llama", 2, {}),
    "two teams": ("sft", "gemma", 4, {}),
    "adapters": ("orpo", "gemma", 2, {"lora": {"rank": 2}}),
}
MORE: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "norms of queries and keys": ("sft", "gemma3", 2, {}),
    "biases, four ranks for two heads": ("orpo", "qwen2", 4, {"parallel": {"tensor": 4}}),
    "adapters on divided heads": ("sft", "qwen2", 4, {"lora": {"rank": 3}}),
    "frozen layers": ("dpo", "smollm2", 4, {"training": {"frozen_layers": 1}}),
    "a reward model": ("reward", "gemma2", 2, {}),
    "documents": ("pretraining", "llama", 2, {}),
    "a teacher": ("distillation", "smollm2", 2, {}),
}


def recipe_for(folder: Path, name: str, family: str, **sections: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    write_model(folder / "model", family=family)
    training = {"steps": 3, "save_every": 2, "keep_last": 9} | sections.pop("training", {})
    make = write_recipe if name == "orpo" else lambda *given, **changes: recipe_of(given[0], name, **changes)
    return make(folder, training=training, **sections)


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_team_learns_what_one_process_learns(tmp_path: Path, name: str):
    """Three steps and the held-out examples around them; checkpoints and the finished model are whole."""
    objective, family, size, sections = (CASES | MORE)[name]
    recipe = recipe_for(tmp_path, objective, family, **{"parallel": {"tensor": 2}, **sections})
    train_ranks(recipe, size)
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    assert_alike(one, tmp_path / "run")
    [path] = checkpoints(tmp_path / "run")
    mine, theirs = weights(path), weights(one / "checkpoints" / path.name)
    assert mine.keys() == theirs.keys()
    assert all((tensor - theirs[key]).norm() <= 1e-5 * tensor.norm() for key, tensor in mine.items())
    if "lora" in sections:
        file = Path("adapter") / "adapter_model.safetensors"
        mine, theirs = (safetensors.torch.load_file(run / file) for run in (one, tmp_path / "run"))
        assert all((tensor - theirs[key]).norm() <= 1e-5 * tensor.norm() for key, tensor in mine.items())


def test_a_team_in_mixed_precision(tmp_path: Path):
    """Products and messages in bf16 over fp32 weights: every loss within the rounding of its products."""
    recipe = recipe_for(tmp_path, "orpo", "gemma2", model={"compute": "bfloat16"}, parallel={"tensor": 2})
    train_ranks(recipe, 2)
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    mine, theirs = ([record["loss"] for record in numbers(run) if "loss" in record] for run in (one, tmp_path / "run"))
    assert len(mine) == 3
    assert mine == pytest.approx(theirs, rel=1e-2)


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs of one process ("one"), and of a team of two ("run")."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_for(folder, "orpo", "gemma", training={"steps": 4, "weight_decay": 0.01})
    train_ranks(recipe, 2, PAIR)
    hanlin.train(recipe, overrides=[f"output.directory={folder / 'one'}"])
    return folder


RESUMED = [  # whose checkpoint, with how many ranks, and what of [parallel]
    ("run", 1, "parallel.tensor=1"),
    ("one", 2, PAIR),
    ("run", 2, "parallel.tensor=1"),
    pytest.param("run", 4, PAIR, marks=pytest.mark.slow),
    pytest.param("run", 2, "parallel.shard=full", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("source", "size", "setting"), RESUMED)
def test_resumed_with_other_ranks(finished: Path, tmp_path: Path, source: str, size: int, setting: str):
    recipe, place = resumable(finished, source, tmp_path, step=2)
    alone = "parallel.tensor=1" if setting != PAIR else PAIR
    if size == 1:
        hanlin.train(recipe, overrides=[place, setting], resume=True)
    else:
        train_ranks(recipe, size, place, alone, setting, resume=True)
    assert_alike(finished / "one", tmp_path / "run")


@pytest.mark.slow
def test_a_team_reads_sharded_checkpoints(finished: Path, tmp_path: Path):
    """Those of FSDP2."""
    recipe = shutil.copy(finished / "recipe.toml", tmp_path / "recipe.toml")
    train_ranks(recipe, 2, f"output.directory={tmp_path / 'full'}", "parallel.shard=full")
    recipe, place = resumable(tmp_path, "full", tmp_path, step=2)
    train_ranks(recipe, 2, place, "parallel.shard=none", PAIR, resume=True)
    assert_alike(finished / "one", tmp_path / "run")


def test_resumed_by_an_equal_team_is_uninterrupted_bit_for_bit(finished: Path, tmp_path: Path):
    recipe, place = resumable(finished, "run", tmp_path, step=2)
    train_ranks(recipe, 2, place, PAIR, resume=True)
    assert_equal(finished / "run", tmp_path / "run")


# What is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    'parallel.shard = "full"': ["parallel.shard=full"],
    "track.samples": ["track.samples=2"],
    "model.quantization": ["model.quantization=nf4", "lora.rank=2"],
    'training.optimizer = "adamw"': ["training.optimizer=adamw_bf16", "model.dtype=bfloat16"],
    "training.compile = true": ["training.compile=true"],
    "training.step_in_backward = true": ["training.step_in_backward=true", "training.clip=0"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_go_with_teams_is_refused_when_the_recipe_is_read(tmp_path: Path, said: str):
    with pytest.raises(ConfigError, match=f"parallel.tensor above 1 .*{said}.*docs/planner.md"):
        load_recipe(Recipe, write_recipe(tmp_path), [PAIR, *REFUSED[said]])


def test_ranks_that_cannot_make_teams_are_refused(tmp_path: Path):
    recipe = recipe_for(tmp_path, "orpo", "gemma")
    assert join_ranks(start_ranks(recipe, 3, PAIR)) == [1, 1, 1]
    for rank in range(3):
        error = (tmp_path / f"error-{rank}.txt").read_text()
        assert error.startswith("ConfigError: parallel.tensor = 2 does not divide the 3 processes of this run")


def test_heads_that_cannot_be_divided_are_refused_before_weights_are_read(tmp_path: Path, monkeypatch):
    recipe = load_recipe(Recipe, recipe_for(tmp_path, "orpo", "gemma"))
    material = open_material(recipe, on_note=print)
    monkeypatch.setattr("hanlin.training.material.fill", lambda *_, **__: pytest.fail("weights were read"))
    said = "parallel.tensor = 3 does not divide this model, which has 4 query heads, 1 key/value heads.*can be 1, 2, 4"
    with pytest.raises(ConfigError, match=said):
        Session(material, tmp_path / "run", resume=False, world=World(own_team=World(0, 3)))
