"""What a dry run promises, against what the run then does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hanlin.config import load_recipe
from hanlin.data.pack import pack_pairs
from hanlin.errors import ConfigError
from hanlin.models.weights import save_model
from hanlin.objectives.orpo import batch_logprobs
from hanlin.training.plan import make_plan, matmul_rate
from hanlin.training.recipe import Recipe
from hanlin.training.session import Material, load_training_model, open_material
from tiny import tiny_model
from tiny_run import rows, write_recipe, write_rows


def note(message: str) -> None:
    """Nobody listens."""


def material(folder: Path, **changes: dict[str, Any]) -> Material:
    path = write_recipe(folder, **changes)  # pyright: ignore[reportArgumentType]
    return open_material(load_recipe(Recipe, path), on_note=note)


def test_a_plan_counts_what_the_run_will_see(tmp_path: Path):
    opened = material(tmp_path)
    plan = make_plan(opened)
    seen = [opened.data.train[index] for step in range(6) for index in opened.order.step(step)]
    assert plan.num_steps == opened.num_steps == 6
    assert plan.epochs == pytest.approx(6 * 4 / 11)
    assert plan.stream_tokens == sum(pair.num_tokens for pair in seen)
    assert plan.logical_tokens == sum(pair.num_logical_tokens for pair in seen)
    model = load_training_model(opened, on_note=note)
    assert plan.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.weight_bytes == 4 * plan.num_parameters
    assert plan.optimizer_bytes == 8 * plan.num_parameters


def test_its_arithmetic_is_the_passes_arithmetic(tmp_path: Path):
    """torch counts the matrix products of the same passes; the query-key products of attention are added by hand."""
    opened = material(tmp_path, training={"steps": 2, "batch_pairs": 6})
    model = load_training_model(opened, on_note=note)
    seen = 0.0
    with FlopCounterMode(display=False) as counter:
        for step in range(2):
            batch = pack_pairs([opened.data.train[index] for index in opened.order.step(step)])
            batch_logprobs(model, batch).sum().backward()
            seen += sum(s.length * s.prefix_length + s.length**2 / 2 for s in batch.segments)
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    attention = 3 * 4 * model.config.num_layers * model.config.num_heads * model.config.head_dim * seen
    assert make_plan(opened).flops == pytest.approx(products + attention, rel=0.03)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"steps": 3}, 3),
        ({"epochs": 2}, 6),
        ({"epochs": 0.5}, 2),
        ({"epochs": 2, "tokens": 1}, 1),
        ({"steps": 100, "tokens": 10**9}, 100),
    ],
)
def test_steps_come_from_epochs_steps_or_tokens(tmp_path: Path, training: dict[str, float], steps: int):
    recipe = write_recipe(tmp_path)
    text = recipe.read_text().replace("steps = 6\n", "".join(f"{key} = {value}\n" for key, value in training.items()))
    recipe.write_text(text)
    opened = open_material(load_recipe(Recipe, recipe), on_note=note)
    assert opened.num_steps == steps
    assert make_plan(opened).num_steps == steps


def test_a_token_budget_ends_with_the_step_that_passes_it(tmp_path: Path):
    opened = material(tmp_path)
    tokens = [sum(opened.data.train[i].num_tokens for i in opened.order.step(step)) for step in range(6)]
    for budget, steps in ((sum(tokens[:3]), 3), (sum(tokens[:3]) + 1, 4), (sum(tokens[:3]) - 1, 3)):
        assert material(tmp_path, training={"tokens": budget}).num_steps == steps


def test_less_than_one_pair_is_refused(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("steps = 6\n", "epochs = 0.01\n"))
    opened = open_material(load_recipe(Recipe, recipe), on_note=note)
    with pytest.raises(ConfigError, match=r"training\.epochs = 0\.01 of 11 pairs is less than one pair"):
        make_plan(opened)


def test_a_tokenizer_of_another_model_is_found_before_the_weights_are_read(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    save_model(tiny_model("smollm2"), tmp_path / "model")  # 97 rows for a tokenizer of 341
    with pytest.raises(ConfigError, match="rows for 0 to 96"):
        make_plan(open_material(load_recipe(Recipe, recipe), on_note=note))


def test_the_plan_in_words(tmp_path: Path):
    write_rows(tmp_path / "pairs.jsonl", [row | {"prompt": row["prompt"] * 9} for row in rows(14)])
    steps, duration, memory = make_plan(material(tmp_path)).lines()
    assert steps.startswith("6 steps, 2.18 epochs, ")
    assert "sharing saves" in steps
    assert re.match(r"about \d+ s on cpu: ", duration)
    assert memory.startswith("about 0.0 GB: weights 0.0, gradients 0.0, ")


def test_the_machine_is_measured():
    rate = matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01)
    assert 1e8 < rate < 1e16
