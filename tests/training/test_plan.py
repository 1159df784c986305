"""What a dry run promises, against what the run then does."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hanlin.config import load_recipe
from hanlin.data.budget import streams
from hanlin.data.pack import pack_pairs
from hanlin.errors import ConfigError
from hanlin.models.memory import Scratch
from hanlin.models.nf4 import packed_matrices
from hanlin.models.parts import Part
from hanlin.models.weights import open_checkpoint, save_model
from hanlin.objectives.orpo import batch_logprobs
from hanlin.training.division import Division
from hanlin.training.footprint import count_sizes, footprint
from hanlin.training.optim import make_optimizer
from hanlin.training.plan import make_plan
from hanlin.training.recipe import Recipe
from hanlin.training.remedies import changes, verdicts
from hanlin.training.session import Material, load_training_model, open_material
from hanlin.training.speed import measure_speed
from hanlin.training.workload import Workload, read_workload
from tiny import CONFIGS, tiny_model
from tiny_objectives import instructions
from tiny_run import rows, write_model, write_recipe, write_rows


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
    assert plan.memory.weights == plan.memory.gradients == 4 * plan.num_parameters
    assert plan.memory.states == 8 * plan.num_parameters
    assert plan.memory.copies == 0


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
    steps, duration, memory, largest, *cards = make_plan(material(tmp_path)).lines()
    assert steps.startswith("6 steps, 2.18 epochs, ")
    assert "sharing saves" in steps
    assert re.match(r"about \d+ s on cpu, [\d.e-]+ s a step: ", duration)
    assert memory.startswith("about 0.9 GB: process 0.85, ")
    assert largest.startswith("largest single tensor: embed.weight, 0.00 GB")
    assert [card.split(":")[0] for card in cards] == ["16 GB", "24 GB", "48 GB", "80 GB", "141 GB"]
    assert all("fits, 0.9 GB" in card for card in cards)


def test_the_machine_is_measured():
    speed = measure_speed(torch.device("cpu"), torch.float32, CONFIGS["llama"], seconds=0.02)
    assert 1e7 < speed.products < 1e16
    assert 1e7 < speed.bandwidth < 1e14


# Memory --------------------------------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "bf16": {"model": {"dtype": "bfloat16"}, "training": {"optimizer": "adamw_bf16"}},
    "frozen": {"training": {"frozen_layers": 2}},
    "lora": {"lora": {"rank": 3}},
    "lora on some": {"lora": {"rank": 3, "targets": ["q_proj"]}, "model": {"dtype": "bfloat16"}},
    "qlora": {"lora": {"rank": 3}, "model": {"quantization": "nf4"}},
    "qlora on some": {"lora": {"rank": 3, "targets": ["v_proj"]}, "model": {"quantization": "nf4"}},
    "reward": {"objective": {"kind": "reward"}},
}


@pytest.mark.parametrize("family", ["smollm2", "llama"])
@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_what_a_model_holds_is_counted(tmp_path: Path, changes: dict[str, dict[str, Any]], family: str):
    """Weights, gradients and states of the loaded model, for tied and untied heads."""
    if changes.get("model", {}).get("quantization"):
        pytest.importorskip("bitsandbytes")
    write_model(tmp_path / "model", family=family)
    opened = material(tmp_path, **changes)
    plan = make_plan(opened)
    model = load_training_model(opened, on_note=note)
    held = sum(one.nbytes for one in model.parameters()) + sum(x.num_bytes for x in packed_matrices(model).values())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert plan.memory.weights == pytest.approx(held, rel=0.03)  # four bits of tiny matrices end in part of a block
    assert plan.num_trained == sum(parameter.numel() for parameter in trained)
    assert plan.memory.gradients == pytest.approx(sum(parameter.nbytes for parameter in trained), rel=0.01)
    optimizer = make_optimizer(model, opened.recipe.training)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim]
    assert plan.memory.states == pytest.approx(sum(state.nbytes for state in states), rel=0.01)


@pytest.mark.parametrize(("dtype", "compute"), [("float32", "bfloat16"), ("float32", "float32"), ("bfloat16", "auto")])
@pytest.mark.parametrize("family", ["smollm2", "llama"])
def test_copies_in_the_compute_dtype_are_those_that_a_step_makes(tmp_path: Path, family: str, dtype: str, compute: str):
    write_model(tmp_path / "model", family=family)
    optimizer = "adamw" if dtype == "float32" else "adamw_bf16"
    opened = material(tmp_path, model={"dtype": dtype, "compute": compute}, training={"optimizer": optimizer})
    model = load_training_model(opened, on_note=note)
    made: dict[int, int] = {}

    class Noting(Scratch):
        def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
            copy = super().cast(weight, dtype)
            if copy.data_ptr() != weight.data_ptr():
                made[id(weight)] = copy.nbytes
            return copy

    model.lend(Noting())
    batch_logprobs(model, pack_pairs(opened.data.train[:3])).sum().backward()
    assert make_plan(opened).memory.copies == sum(made.values())


def test_the_largest_pass_is_the_one_that_will_be_packed(tmp_path: Path):
    opened = material(tmp_path, training={"tokens_per_pass": 60, "batch_pairs": 5})
    load = read_workload(opened, "cpu")
    seen, number = [], []
    for step in range(6):
        chosen = [opened.data.train[index] for index in opened.order.step(step)]
        batches = [batch for _, batch in streams(chosen, pack_pairs, max_tokens=60)]
        seen += [(batch.num_tokens, len(torch.unique(batch.predictor_N))) for batch in batches]
        number.append(len(batches))
    assert load.tokens == max(tokens for tokens, _ in seen)
    assert load.predictions == pytest.approx(max(predictions for _, predictions in seen), abs=8)
    assert load.passes == max(number)
    assert load.longest == max(pair.num_tokens for pair in opened.data.train)


def test_several_devices_divide_what_is_divided(tmp_path: Path):
    one, four = (make_plan(material(tmp_path), ranks=ranks).memory for ranks in (1, 4))
    assert (four.weights, four.gradients, four.states) == (one.weights / 4, one.gradients / 4, one.states / 4)
    assert four.activations == one.activations


def test_a_team_divides_layers_and_keeps_the_rest(tmp_path: Path):
    """By hand, in fp32: SmolLM2's tiny namesake has two key/value heads, matrices of 24 x (64 + 32 + 32 + 64) and 3 of
    24 x 40 in each of three layers; embedding, tied head and norms are whole.
    """
    one, team = (make_plan(material(tmp_path, parallel={"tensor": size})) for size in (1, 2))
    layers = 3 * (24 * (64 + 32 + 32 + 64) + 3 * 24 * 40)
    assert team.num_parameters == one.num_parameters
    assert one.memory.weights - team.memory.weights == 4 * layers / 2
    assert (team.memory.gradients, team.memory.states) == (team.memory.weights, 2 * team.memory.weights)
    assert team.memory.activations < one.memory.activations
    assert team.flops < one.flops
    assert "on each of 2 devices" in "".join(team.lines())
    divided = load_training_model(material(tmp_path), on_note=note, division=Division(part=Part(1, 2, 2)))
    assert sum(parameter.nbytes for parameter in divided.parameters()) == team.memory.weights


def test_sampling_puts_a_divided_model_together(tmp_path: Path):
    """Sharded, each device has half of the starting model, and all of the sampled one; in a team, too."""
    objective = {"kind": "rlhf", "rewards": ["chinese"], "answers": 2, "max_tokens": 8}
    opened = material(tmp_path, objective=objective)
    load, config = read_workload(opened, "cuda"), open_checkpoint(opened.source).config
    given = {"device": "cuda", "capacity": 80e9}
    one, half = (footprint(config, opened.recipe, load, ranks=ranks, **given) for ranks in (1, 2))
    assert half.others == one.others / 2
    assert half.answering - one.answering == one.weights  # in fp32 an engine shares the weights of a whole model
    team = load_recipe(Recipe, tmp_path / "recipe.toml", ["parallel.tensor=2"])
    divided = footprint(config, team, load, **given)
    assert divided.answering == half.answering
    assert one.others / 2 < divided.others < one.others


def test_sampling_answers_is_counted(tmp_path: Path):
    objective = {"kind": "rlhf", "rewards": ["chinese"], "answers": 2, "max_tokens": 8}
    full = make_plan(material(tmp_path, objective=objective)).memory
    assert full.others > 0.9 * full.weights
    assert full.answering > 0
    adapted = make_plan(material(tmp_path, objective=objective, lora={"rank": 2})).memory
    assert adapted.others == 0  # the adapters are switched off instead


def test_a_teacher_is_counted(tmp_path: Path):
    """One of the student's size: its weights, and a forward pass beside the three products of learning."""
    data = {"train": [str(write_rows(tmp_path / "texts.jsonl", instructions(14)))]}
    alone = make_plan(material(tmp_path, data=data, objective={"kind": "sft"}))
    taught = {"kind": "distillation", "teacher": str(write_model(tmp_path / "teacher", seed=1))}
    plan = make_plan(material(tmp_path, data=data, objective=taught))
    assert plan.memory.others == plan.memory.weights
    assert plan.memory.peak == alone.memory.peak + plan.memory.others
    assert plan.flops == pytest.approx(alone.flops * 4 / 3)


# Cards ---------------------------------------------------------------------------------------------------------------

LLAMA = replace(
    CONFIGS["llama"], vocab_size=128256, num_layers=32, width=4096, ffn_width=14336, num_heads=32, num_kv_heads=8,
    head_dim=128, windows=(None,) * 32,
)  # fmt: skip
LOAD = Workload(tokens=4096, predictions=3000, longest=2048, passes=12)


def llama_recipe(**sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {"model": {"path": "x"}, "data": {"train": ("x",)}}
    return Recipe.model_validate(tree | sections)


def test_the_counts_of_a_known_model():
    sizes = count_sizes(LLAMA, llama_recipe())
    assert sizes.parameters == 8_030_261_248  # the model card's "8B", by its config
    assert sizes.largest == ("embed.weight", 128256 * 4096)


def test_an_8b_model_fits_where_people_fit_it():
    """LoRA needs 16 GB for the weights alone; QLoRA fits 24 GB; all weights in fp32 fit no single card."""
    lora = {"lora": {"rank": 16}, "model": {"path": "x", "dtype": "bfloat16"}}
    packed = {"lora": {"rank": 16}, "model": {"path": "x", "dtype": "bfloat16", "quantization": "nf4"}}
    full = list(verdicts(LLAMA, llama_recipe(), LOAD, device="cuda"))
    adapted = list(verdicts(LLAMA, llama_recipe(**lora), LOAD, device="cuda"))
    quantized = list(verdicts(LLAMA, llama_recipe(**packed), LOAD, device="cuda"))
    assert all("does not fit" in line for line in full)
    assert "would with --set lora.rank=16" in full[2]  # 48 GB
    assert "does not fit" in adapted[0]
    assert "model.quantization=nf4" in adapted[0]
    assert all(": fits" in line for line in adapted[2:])
    assert all(": fits" in line for line in quantized[1:])


def test_what_fits_a_card_fits_a_larger_one_and_never_takes_more_than_it_has():
    for recipe in (llama_recipe(), llama_recipe(lora={"rank": 8}, model={"path": "x", "dtype": "bfloat16"})):
        fits = [": fits" in line for line in verdicts(LLAMA, recipe, LOAD, device="cuda")]
        assert fits == sorted(fits)
    for card in (16, 24, 48, 80, 141):
        for change in changes(llama_recipe(), LOAD, device="cuda"):
            found = footprint(LLAMA, change.recipe, change.load, device="cuda", capacity=0.9e9 * card)
            larger = footprint(LLAMA, change.recipe, change.load, device="cuda", capacity=1.8e9 * card)
            assert found.peak <= larger.peak


def test_changes_come_with_the_least_harm_first_and_are_valid_recipes():
    words = [change.words for change in changes(llama_recipe(), LOAD, device="cuda")]
    order = ["tokens_per_pass", "model.dtype=bfloat16 --set training.optimizer=adamw_bf16", "paged_adamw_8bit",
        "lora.rank=16", "quantization=nf4", "data.max_length", "2 such devices"]  # fmt: skip
    places = [next(place for place, word in enumerate(words) if part in word) for part in order]
    assert places == sorted(places)
    on_cpu = [change.words for change in changes(llama_recipe(), LOAD, device="cpu")]
    assert not any("8bit" in word or "devices" in word for word in on_cpu)
    on_two = [change.words for change in changes(llama_recipe(), LOAD, device="cuda", ranks=2)]
    assert not any("8bit" in word for word in on_two)
    paged = llama_recipe(training={"optimizer": "paged_adamw_32bit"})
    assert not any("devices" in change.words for change in changes(paged, LOAD, device="cuda"))


def test_settings_that_were_made_by_hand_are_given_back_first():
    recipe = llama_recipe(training={"recomputed_layers": 0, "head": "fast"})
    words = [change.words for change in changes(recipe, LOAD, device="cuda")]
    assert "--set training.recomputed_layers=auto" in words
    assert "--set training.head=auto" in words


# Without weights, without the device ---------------------------------------------------------------------------------


def test_a_config_and_a_tokenizer_are_enough(tmp_path: Path):
    whole = make_plan(material(tmp_path))
    (tmp_path / "model" / "model.safetensors").unlink()
    alone = make_plan(material(tmp_path))
    assert (alone.memory, alone.flops) == (whole.memory, whole.flops)


def test_a_run_on_cuda_is_planned_on_a_machine_without(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = make_plan(material(tmp_path, training={"device": "cuda", "optimizer": "paged_adamw_32bit"}))
    assert plan.seconds is None
    lines = list(plan.lines())
    assert "this machine has no cuda to measure the time on" in lines[1]
    assert lines[-1].startswith("cannot run on this machine: training.")


def test_what_would_be_refused_is_said_at_the_end_of_the_plan(tmp_path: Path):
    lines = list(make_plan(material(tmp_path, training={"optimizer": "adamw_8bit"})).lines())
    assert lines[-1].startswith('cannot run on this machine: training.optimizer = "adamw_8bit"')
