"""Every recipe in recipes/ is read with the real classes, and the published ones say what their authors published."""

import json
import math
from pathlib import Path

import pytest
import torch

import hanlin
from hanlin.config import dump_toml, load_recipe
from hanlin.curation.recipe import CurationRecipe
from hanlin.errors import ConfigError
from hanlin.objectives.distillation import DistillationConfig
from hanlin.objectives.policy import RlhfConfig
from hanlin.text.chat import FORMATS
from hanlin.training.metrics import read_metrics
from hanlin.training.optim import check_optimizer
from hanlin.training.recipe import Recipe
from hanlin.training.rewards import BUILT_IN
from tiny_objectives import documents, instructions
from tiny_run import rows, write_model, write_rows

RECIPES = Path(__file__).parent.parent / "recipes"
PUBLISHED = {
    "orpo-llama-3-8b-chinese-chat": {"epochs": 3.0, "learning_rate": 5e-6, "batch_pairs": 64},
    "orpo-llama-3-8b-chinese-chat-v2.1": {"epochs": 2.0, "learning_rate": 3e-6, "batch_pairs": 128},
}


TOOL_CALL = {
    "tools": '[{"name": "fox", "description": "", "parameters": {"type": "object", "properties": {}}}]',
    "conversations": [
        {"from": "human", "value": "what is a fox?"},
        {"from": "function_call", "value": '{"name": "fox", "arguments": {}}'},
        {"from": "observation", "value": "lazy"},
        {"from": "gpt", "value": "the lazy fox"},
    ],
}


def read(name: str, *overrides: str) -> Recipe:
    return load_recipe(Recipe, RECIPES / f"{name}.toml", overrides)


TRAINING = sorted(path for path in RECIPES.glob("*.toml") if path.stem != "curate")


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_recipe_is_understood_and_survives_being_written(path, tmp_path):
    recipe = read(path.stem)
    assert recipe.chat.format in {None, *FORMATS}
    (tmp_path / "resolved.toml").write_text(dump_toml(recipe), encoding="utf-8")
    assert load_recipe(Recipe, tmp_path / "resolved.toml") == recipe


def test_the_curation_recipe_is_understood():
    recipe = load_recipe(CurationRecipe, RECIPES / "curate.toml")
    assert all((RECIPES.parent / file).is_file() for file in recipe.input.files)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    recipe = read(name)
    training = recipe.training
    assert {key: training.model_dump()[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert (training.schedule, training.warmup, training.seed) == ("cosine", 0.1, 42)
    assert training.optimizer == "paged_adamw_32bit"
    assert (recipe.objective.preset, recipe.objective.weight) == ("llamafactory", 0.05)
    assert (recipe.data.max_length, recipe.chat.format) == (8192, "llama3")
    assert recipe.chat.system == "You are a helpful assistant."
    assert recipe.model.path == "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_optimizer_is_refused_on_a_cpu_with_a_way_on(name):
    with pytest.raises(ConfigError, match=r"paged_adamw_32bit.*training\.optimizer=adamw"):
        check_optimizer(read(name).training.optimizer, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("demo", "orpo"),
        ("sft-smollm2", "sft"),
        ("pretrain-smollm2", "pretraining"),
        ("dpo-smollm2", "dpo"),
        ("reward-smollm2", "reward"),
        ("rlhf-smollm2", "rlhf"),
        ("distil-smollm2", "distillation"),
        ("gemma-2b-1-pretrain", "pretraining"),
        ("gemma-2b-2-sft", "sft"),
        ("gemma-2b-3-reward", "reward"),
        ("gemma-2b-4-rlhf", "rlhf"),
    ],
)
def test_every_objective_has_a_recipe(name, kind):
    recipe = read(name)
    assert recipe.objective.kind == kind
    assert recipe.data.held_out or recipe.data.held_out_pairs


# What a recipe's name or model says, and the tiny family that stands for it; the first that fits.
SHAPES = {"gemma-2-": "gemma2", "gemma-3": "gemma3", "gemma": "gemma", "llama-3": "llama", "smollm2": "smollm2"}
ON_A_CPU = ("adamw", "adamw_bf16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of every family that recipes name, and data in every form."""
    path = tmp_path_factory.mktemp("recipes")
    for family in set(SHAPES.values()):
        write_model(path / family, family=family)
    write_rows(path / "pairs.jsonl", rows(8))
    write_rows(path / "conversations.jsonl", instructions(8))
    write_rows(path / "tools.jsonl", [TOOL_CALL | {"id": f"call-{number}"} for number in range(8)])
    write_rows(path / "documents.jsonl", documents(8))
    return path


def tiny_overrides(recipe: Recipe, name: str, folder: Path) -> list[str]:
    """The same recipe on tiny random weights of its family, on tiny data, for two steps on a CPU."""
    said = f"{name} {recipe.model.path}".lower()
    families = [family for part, family in SHAPES.items() if part in said]
    assert families, f"{name}: give SHAPES the family that stands for {recipe.model.path}"
    kind, objective = recipe.objective.kind, recipe.objective
    data = "tools" if "tool" in name else "pairs"
    if kind in ("sft", "distillation") and "tool" not in name:
        data = "documents" if getattr(objective, "examples", "") == "documents" else "conversations"
    files = [str(folder / f"{'documents' if kind == 'pretraining' else data}.jsonl")] * len(recipe.data.train)
    values: dict[str, object] = {
        "model.path": str(folder / families[0]),
        "data.train": files,
        "data.held_out": [],
        "data.held_out_pairs": 2,
        "data.max_length": min(recipe.data.max_length, 24 if kind == "pretraining" else 800),
        "training.steps": 2,
        "training.batch_pairs": 3,
        "training.tokens_per_pass": 90,
        "training.device": "cpu",
        "training.evaluate_every": 0,
        "training.save_every": 0,
    }
    if recipe.training.optimizer not in ON_A_CPU:
        values["training.optimizer"] = "adamw"
    if recipe.lora is not None:
        values["lora.rank"] = 2
    if isinstance(objective, RlhfConfig):
        rewards = [name if name in BUILT_IN else "tiny_rewards:letters" for name in objective.rewards]
        values |= {"objective.rewards": rewards, "objective.max_tokens": 6, "objective.cut_limit": 1.0}
    if isinstance(objective, DistillationConfig):
        values["objective.teacher"] = str(folder / families[0])
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_recipe_takes_two_steps_on_its_family(path: Path, folder: Path, tmp_path: Path):
    overrides = tiny_overrides(read(path.stem), path.stem, folder)
    run = hanlin.train(path, overrides=[*overrides, f"output.directory={tmp_path / 'run'}"])
    trained = [record for record in read_metrics(run) if "loss" in record]
    assert [record["step"] for record in trained] == [1, 2]
    assert all(math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]) for record in trained)
    assert (run / "config.json").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.weights=[1]", "has 1 numbers for 2 entries of data.train"),
        ("objective.weights=[0, 0]", "one of them above 0"),
        ("training.tokens=1000", "give training.steps"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        read("pretrain-smollm2", override)


def test_the_demo_trains_on_the_shipped_pairs():
    recipe = read("demo")
    data = recipe.data
    paths = [RECIPES.parent / name for name in (*data.train, *data.held_out)]
    if not any(path.exists() for path in paths):
        pytest.skip("the shipped pairs are not written yet")
    assert [str(path) for path in paths if not path.is_file()] == []
