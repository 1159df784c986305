"""Every objective through the one loop: a whole run, killed and resumed, its diary and what people see of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hanlin
from hanlin.config import load_recipe
from hanlin.errors import ConfigError
from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.metrics import read_metrics
from hanlin.training.objective import OBJECTIVES
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, open_material
from tiny import CONFIGS
from tiny_objectives import CASES, recipe_of
from tiny_run import write_model
from tiny_text import write_directory


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A case, and a folder with its finished run."""
    folder = tmp_path_factory.mktemp("run")
    hanlin.train(recipe_of(folder, request.param))
    return request.param, folder


def diary(run: Path) -> list[dict[str, Any]]:
    return [{key: v for key, v in record.items() if "per_second" not in key} for record in read_metrics(run)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "model.safetensors")


def test_the_run_learns_and_says_so_in_its_diary(finished: tuple[str, Path]):
    name, folder = finished
    records = read_metrics(folder / "run")
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4, 4, 5, 6, 6]
    held_out = [record for record in records if any(key.startswith("eval_") for key in record)]
    assert [record["step"] for record in held_out] == [0, 4, 6]
    for record in records:
        if record not in held_out:
            assert set(record) >= CASES[name][1]
    assert all(CASES[name][2] in record for record in held_out)
    if name != "pretraining mixed":  # its last steps are another text than its first
        assert records[-2]["loss"] < records[1]["loss"]
    if "eval_nll_loss" in CASES[name][1] | {CASES[name][2]}:
        assert held_out[-1]["eval_nll_loss"] < held_out[0]["eval_nll_loss"]


def test_resumed_is_uninterrupted_bit_for_bit(finished: tuple[str, Path], tmp_path: Path):
    _, folder = finished
    whole, part = folder / "run", tmp_path / "run"
    shutil.copytree(whole / "checkpoints" / "step-000002", part / "checkpoints" / "step-000002")
    shutil.copy(whole / "recipe.toml", part)
    shutil.copy(whole / "metrics.jsonl", part)
    hanlin.train(whole / "recipe.toml", overrides=[f"output.directory={part}"], resume=True)
    mine, theirs = weights(part), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert diary(part) == diary(whole)


def test_micro_batches_change_nothing_but_rounding(finished: tuple[str, Path], tmp_path: Path):
    name, folder = finished
    recipe = recipe_of(folder, name, training={"tokens_per_pass": 1}, output={"directory": str(tmp_path / "run")})
    apart = hanlin.train(recipe)
    for one, other in zip(diary(apart), diary(folder / "run"), strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_lora_trains_it_too(finished: tuple[str, Path], tmp_path: Path):
    name, folder = finished
    changes: dict[str, Any] = {"lora": {"rank": 2}, "output": {"directory": str(tmp_path / "run")}}
    if name == "distillation of documents":  # a random teacher has nothing in common with its student
        changes["training"] = {"learning_rate": 2e-2}
    recipe = recipe_of(folder, name, **changes)
    records = [record for record in read_metrics(hanlin.train(recipe)) if "loss" in record]
    assert len(records) == 6
    if name != "pretraining mixed":
        assert records[-1]["loss"] < records[1]["loss"]


def test_dpo_starts_from_ln_2_and_its_reference_stays(tmp_path: Path):
    """The reference is the starting model's, also where training goes on from a checkpoint."""
    recipe = load_recipe(Recipe, recipe_of(tmp_path, "dpo"))
    first = Session(open_material(recipe), tmp_path / "run", resume=False)
    first.train()
    again = Session(open_material(recipe), tmp_path / "run", resume=True)
    assert again.progress.step == 4
    assert [pair.reference for pair in again.data.train] == [pair.reference for pair in first.data.train]
    assert all(pair.reference is not None for pair in (*again.data.train, *again.data.held_out))
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert losses[0] == pytest.approx(0.6931472, abs=1e-6)


def test_a_teacher_of_itself_teaches_nothing(tmp_path: Path):
    recipe = recipe_of(tmp_path, "distillation", objective={"weight": 0.0})
    run = hanlin.train(recipe, overrides=[f"objective.teacher={tmp_path / 'model'}", "training.steps=2"])
    first, *_ = read_metrics(run)
    assert first["eval_divergence"] == 0
    trained = [record for record in read_metrics(run) if "loss" in record]
    assert all(record["loss"] == record["divergence"] == record["grad_norm"] == 0 for record in trained)


def test_a_teacher_with_another_vocabulary_is_refused_before_any_weight_is_read(tmp_path: Path):
    recipe, other = recipe_of(tmp_path, "distillation"), write_model(tmp_path / "other", family="llama")
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cannot be compared; choose a teacher of the student's own family"):
        open_material(load_recipe(Recipe, recipe, [f"objective.teacher={other}"]))


def test_a_teacher_with_a_wider_head_or_none_is_refused(tmp_path: Path):
    recipe = recipe_of(tmp_path, "distillation")
    other, size = tmp_path / "other", Tokenizer.open(tmp_path / "model").size
    write_directory(other, "smollm2")
    wider = Transformer(replace(CONFIGS["smollm2"], vocab_size=size + 8))
    wider.initialize()
    save_model(wider, other, dtype="float32")
    with pytest.raises(ConfigError, match=f"has a head for {size + 8} ids, the student one for {size}"):
        hanlin.train(recipe, overrides=[f"objective.teacher={other}"])
    scored = hanlin.train(recipe_of(tmp_path, "reward", output={"directory": str(tmp_path / "scored")}))
    with pytest.raises(ConfigError, match="is a reward model; name a language model"):
        hanlin.train(recipe_of(tmp_path, "distillation"), overrides=[f"objective.teacher={scored}"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("objective.kind=rl", "objective"),
        ("objective.beta=0", "greater than 0"),
        ("objective.bta=1", "did you mean objective.beta"),
        ("objective.weight=0.1", "not a known key; known here: beta, kind"),
        ("objective.score=first", "score"),
    ],
)
def test_a_section_of_another_kind_is_refused(tmp_path: Path, override: str, complaint: str):
    recipe = recipe_of(tmp_path, "sft" if "score" in override else "dpo")
    with pytest.raises(ConfigError) as caught:
        load_recipe(Recipe, recipe, [override])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_of_a_recipe_has_an_objective():
    kinds = {json.dumps(config.model_fields["kind"].annotation.__args__) for config in OBJECTIVES}
    assert len(kinds) == len(OBJECTIVES)
