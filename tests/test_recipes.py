"""Every recipe in recipes/ is read with the real classes, and the published ones say what their authors published."""

from pathlib import Path

import pytest
import torch

from hanlin.config import dump_toml, load_recipe
from hanlin.curation.recipe import CurationRecipe
from hanlin.errors import ConfigError
from hanlin.text.chat import FORMATS
from hanlin.training.optim import check_optimizer
from hanlin.training.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"
PUBLISHED = {
    "orpo-llama-3-8b-chinese-chat": {"epochs": 3.0, "learning_rate": 5e-6, "batch_pairs": 64},
    "orpo-llama-3-8b-chinese-chat-v2.1": {"epochs": 2.0, "learning_rate": 3e-6, "batch_pairs": 128},
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
    ],
)
def test_every_objective_has_a_recipe(name, kind):
    recipe = read(name)
    assert recipe.objective.kind == kind
    assert recipe.data.held_out or recipe.data.held_out_pairs


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
