"""What can be combined: the table, the check, and that they say the same as what then happens."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.config import load_recipe
from hanlin.errors import ConfigError
from hanlin.training.learning import check_runs_here
from hanlin.training.optim import make_optimizer
from hanlin.training.parallel import World
from hanlin.training.plan import make_plan
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, load_training_model, open_material
from hanlin.training.supported import MATRIX, Setting, check_supported
from tiny_run import rows, write_recipe, write_rows

OPTIMIZERS = ("adamw", "adamw_bf16", "paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit")
BASE: dict[str, Any] = {
    "quantization": None, "lora": False, "frozen_layers": 0, "dtype": "float32", "compute": "bfloat16",
    "optimizer": "adamw", "compile": "auto", "clip": 1.0, "step_in_backward": False,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen layers": {"frozen_layers": 1},
    "LoRA": {"lora": True},
    "QLoRA": {"lora": True, "quantization": "nf4"},
}


def supported(**changes: Any) -> bool:
    try:
        check_supported(Setting(**(BASE | changes)))
    except ConfigError:
        return False
    return True


def test_the_check_agrees_with_the_rules_written_out():
    """All 160 combinations: bitsandbytes' optimizers need CUDA, bf16 weights that learn need an optimizer that can."""
    axes = (METHODS, ("float32", "bfloat16"), ("float32", "bfloat16"), OPTIMIZERS, ("cpu", "cuda"))
    for method, dtype, compute, optimizer, device in itertools.product(*axes):
        expected = device == "cuda" or optimizer in ("adamw", "adamw_bf16")
        if method in ("LoRA", "QLoRA"):
            expected &= optimizer != "adamw_bf16"
        else:
            expected &= optimizer != ("adamw" if dtype == "bfloat16" else "adamw_bf16")
        given = {"dtype": dtype, "compute": compute, "optimizer": optimizer, "device": device}
        assert supported(**METHODS[method], **given) is expected, (method, given)


def test_an_unknown_device_rules_nothing_out_that_some_device_can():
    assert supported(optimizer="paged_adamw_8bit", device=None)
    assert not supported(optimizer="adamw_bf16", device=None)


def test_a_refusal_names_the_setting_the_way_on_and_the_lines_of_the_table():
    with pytest.raises(ConfigError) as caught:
        check_supported(Setting(**(BASE | {"lora": True, "optimizer": "adamw_bf16"})))
    first, *rows = str(caught.value).splitlines()
    assert first.startswith('training.optimizer = "adamw_bf16" does not go with LoRA training, model.dtype = float32')
    assert 'use "adamw" or "paged_adamw_32bit"' in first
    assert "docs/planner.md" in first
    assert len(rows) == sum("LoRA" in line.methods for line in MATRIX)
    assert all("LoRA | float32, bfloat16" in row or "LoRA | bfloat16, float32" in row for row in rows)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.quantization=nf4"], r"needs a \[lora\] section: four bits cannot learn"),
        (
            ["model.quantization=nf4", "lora.rank=2", "training.compile=true"],
            "does not go with training.compile = true",
        ),
        (["training.frozen_layers=1", "lora.rank=2"], r"does not go with \[lora\]"),
        (["training.step_in_backward=true"], "needs training.clip = 0"),
        (["model.quantization=int8"], "nf4"),
        (["training.optimizer=adamw_bf16"], 'use "adamw"'),
        (["training.optimizer=adamw_bf16", "lora.rank=2", "model.dtype=bfloat16"], 'use "adamw"'),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_they_are_read(tmp_path: Path, overrides: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_recipe(Recipe, write_recipe(tmp_path), overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.optimizer=paged_adamw_8bit", "needs a CUDA device"),
        ("training.attention=flex", '"flex" trains on CUDA devices only.*choose "segments"'),
        ("training.frozen_layers=4", "the model has 3: freeze 2 or fewer"),
    ],
)
def test_what_this_machine_or_this_model_lacks_is_said_before_weights_are_read(
    tmp_path: Path, monkeypatch, override: str, said: str
):
    recipe = load_recipe(Recipe, write_recipe(tmp_path), [override])
    material = open_material(recipe, on_note=print)
    monkeypatch.setattr("hanlin.training.material.fill", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=said):
        Session(material, tmp_path / "run", resume=False)


@pytest.mark.parametrize("kind", ["orpo", "rlhf"])
def test_examples_beyond_the_model_s_context_are_told_of_before_weights_are_read(
    tmp_path: Path, monkeypatch, kind: str
):
    """The tiny model has 512 positions. Answers cannot be sampled beyond; what is there can be trained on."""
    write_rows(tmp_path / "pairs.jsonl", [row | {"prompt": row["prompt"] + "天" * 300} for row in rows(8)])
    objective = {"kind": kind} | ({"rewards": ["chinese"], "max_tokens": 8} if kind == "rlhf" else {})
    recipe = load_recipe(Recipe, write_recipe(tmp_path, objective=objective, data={"max_length": 4096}))
    material, said = open_material(recipe, on_note=print), []
    found = r"the longest example takes .* positions, and the model was made for 512.*data\.max_length = 512"
    assert any(re.search(found, line) for line in make_plan(material).lines())
    if kind == "rlhf":
        monkeypatch.setattr("hanlin.training.material.fill", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(ConfigError, match=found):
            Session(material, tmp_path / "run", resume=False)
    else:
        Session(material, tmp_path / "run", resume=False, on_note=said.append)
        assert any(re.search(found, line) for line in said)


def test_a_package_that_is_missing_is_said_before_weights_are_read(tmp_path: Path, monkeypatch):
    write_recipe(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    recipe = load_recipe(Recipe, tmp_path / "recipe.toml", ["model.quantization=nf4", "lora.rank=2"])
    with pytest.raises(ConfigError, match="cannot be imported"):
        check_runs_here(recipe, torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["training.optimizer=paged_adamw_8bit"],
            '= "adamw", whose states are divided too: 2 bytes a parameter on each',
        ),
        (["training.optimizer=adamw_8bit", "model.dtype=bfloat16"], '= "adamw_bf16", whose states .*: 1 bytes'),
        (["track.samples=2"], "leave it out, or set parallel.shard"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(tmp_path: Path, overrides: list[str], said: str):
    material = open_material(load_recipe(Recipe, write_recipe(tmp_path), overrides), on_note=print)
    with pytest.raises(ConfigError, match=f"does not go with weights that are sharded over the ranks.*{said}"):
        Session(material, tmp_path / "run", resume=False, world=World(size=4, sharded=True))


@pytest.mark.parametrize("line", [line for line in MATRIX if "cpu" in line.device], ids=str)
def test_every_line_of_the_table_for_a_cpu_trains(tmp_path: Path, line):
    """The model loads and its optimizer is made, in every method and dtype of the line."""
    for number, (method, dtype) in enumerate(itertools.product(line.methods, line.dtype)):
        if method == "QLoRA":
            pytest.importorskip("bitsandbytes")
        sections: dict[str, Any] = {"model": {"dtype": dtype}, "training": {"optimizer": line.optimizer[0]}}
        if "LoRA" in method:
            sections["lora"] = {"rank": 2}
        if method == "QLoRA":
            sections["model"]["quantization"] = "nf4"
        if method == "frozen layers":
            sections["training"]["frozen_layers"] = 1
        recipe = load_recipe(Recipe, write_recipe(tmp_path, name=f"{number}.toml", **sections))
        check_runs_here(recipe, torch.device("cpu"))
        model = load_training_model(open_material(recipe, on_note=print), on_note=print)
        assert make_optimizer(model, recipe.training).param_groups
