"""A run with [lora]: only adapters learn, it resumes bit for bit, its directory opens everywhere, its plan is right."""

import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import hanlin
from hanlin.cli.app import app
from hanlin.config import load_recipe
from hanlin.data.pack import pack_pairs
from hanlin.errors import ConfigError
from hanlin.models.attention import SegmentAttention
from hanlin.models.lora import LoraConfig, adapted, add_lora, lora_parameters
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model
from hanlin.objectives.orpo import batch_logprobs
from hanlin.training.checkpoint import checkpoints
from hanlin.training.fit import activation_bytes_per_token
from hanlin.training.metrics import read_metrics
from hanlin.training.plan import make_plan
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, load_training_model, open_material
from tiny import CONFIGS, random_pairs
from tiny_run import write_model, write_recipe

LORA = {"rank": 4, "alpha": 8.0}
FAST = {"learning_rate": 1e-2}


def note(message: str) -> None:
    """Nobody listens."""


def weights(directory: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def diary(run: Path) -> list[dict[str, Any]]:
    return [{key: v for key, v in record.items() if "per_second" not in key} for record in read_metrics(run)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of six steps that trained adapters, and left a checkpoint after each step but the last."""
    folder = tmp_path_factory.mktemp("lora")
    recipe = write_recipe(folder, lora=LORA, training={**FAST, "save_every": 1, "keep_last": 9, "weight_decay": 0.01})
    assert hanlin.train(recipe) == folder / "run"
    return folder


def test_only_what_is_adapted_has_changed(finished: Path):
    before, after = weights(finished / "model"), weights(finished / "run")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert losses(finished / "run")[-1] < losses(finished / "run")[0]


def test_frozen_weights_do_not_move_in_memory_and_what_is_saved_is_what_was_trained(tmp_path: Path):
    path = write_recipe(tmp_path, lora=LORA, training=FAST)
    session = Session(open_material(load_recipe(Recipe, path), on_note=note), tmp_path / "run", resume=False)
    learning = set(map(id, lora_parameters(session.model)))
    assert {id(p) for p in session.model.parameters() if p.requires_grad} == learning
    before = {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}
    assert session.train()
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, before[name]) is (id(parameter) not in learning), name
    with_state = {id(parameter) for parameter, state in session.optimizer.state.items() if state}
    assert with_state == learning
    ids = torch.tensor(session.material.tokenizer.encode("你好 world fox"))
    logits_TV = session.model.logits(ids).detach()
    session.finish()
    torch.testing.assert_close(hanlin.load(tmp_path / "run")[0].logits(ids), logits_TV, rtol=1e-5, atol=1e-5)
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids[None]).logits[0], logits_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(finished: Path, tmp_path: Path, step: int):
    run = tmp_path / "run"
    name = f"step-{step:06d}"
    shutil.copytree(finished / "run" / "checkpoints" / name, run / "checkpoints" / name)
    for file in ("recipe.toml", "metrics.jsonl"):
        shutil.copy(finished / "run" / file, run / file)
    overrides = [f"output.directory={run}"]
    assert hanlin.train(finished / "recipe.toml", overrides=overrides, resume=True) == run
    mine, theirs = weights(run), weights(finished / "run")
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key
    assert diary(run) == diary(finished / "run")


def test_a_checkpoint_holds_the_adapters_only_and_opens_merged(finished: Path):
    path = checkpoints(finished / "run")[2]
    state = safetensors.torch.load_file(path / "state" / "weights.safetensors")
    assert {name.rpartition(".")[2] for name in state} == {"down", "up"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    saved = load_model(path, dtype="float32")
    name = "blocks.1.mlp.gate"
    base = load_model(finished / "model").get_submodule(name).weight
    expected = base + 2 * state[f"{name}.up"] @ state[f"{name}.down"]
    torch.testing.assert_close(saved.get_submodule(name).weight, expected, rtol=1e-6, atol=1e-6)


def test_a_bf16_base_keeps_fp32_adapters_and_learns(tmp_path: Path):
    path = write_recipe(
        tmp_path, model={"dtype": "bfloat16", "compute": "bfloat16"}, lora=LORA, training={**FAST, "steps": 12}
    )
    model = load_training_model(open_material(load_recipe(Recipe, path), on_note=note), on_note=note)
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}
    run = hanlin.train(path)
    assert sum(losses(run)[-4:]) < 0.9 * sum(losses(run)[:4])


def test_bf16_arithmetic_stays_near_fp32(tmp_path: Path):
    """The same bf16 base, computed in both: the losses of a run differ by rounding only."""
    write_model(tmp_path / "model", seed=3)
    runs = []
    for compute in ("float32", "bfloat16"):
        path = write_recipe(
            tmp_path, name=f"{compute}.toml", model={"dtype": "bfloat16", "compute": compute}, lora=LORA,
            training=FAST, output={"directory": str(tmp_path / compute)},
        )  # fmt: skip
        runs.append(losses(hanlin.train(path)))
    assert runs[0] == pytest.approx(runs[1], rel=0.02)
    assert runs[0] != runs[1]


def test_results_do_not_depend_on_how_a_step_is_split(finished: Path, tmp_path: Path):
    overrides = ["training.tokens_per_pass=1", "training.save_every=0", f"output.directory={tmp_path / 'run'}"]
    apart = losses(hanlin.train(finished / "recipe.toml", overrides=overrides))
    assert apart == pytest.approx(losses(finished / "run"), rel=1e-4)


CHANGES = [
    (["lora.rank=8"], "lora.rank was 4, is 8"),
    (['lora.targets=["q_proj"]'], "lora.targets was 'all-linear', is ('q_proj',)"),
]


@pytest.mark.parametrize(("overrides", "complaint"), CHANGES)
def test_other_adapters_cannot_go_on_with_a_run(finished: Path, overrides: list[str], complaint: str):
    with pytest.raises(ConfigError) as caught:
        hanlin.train(finished / "recipe.toml", overrides=overrides, resume=True)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapters_cannot_go_on_with_full_training_nor_the_other_way_round(finished: Path, tmp_path: Path):
    text = (finished / "recipe.toml").read_text()
    (tmp_path / "full.toml").write_text(text.replace("[lora]\nrank = 4\nalpha = 8.0\n", ""))
    with pytest.raises(ConfigError, match=r"lora\.rank was 4, is None"):
        hanlin.train(tmp_path / "full.toml", resume=True)
    run = hanlin.train(tmp_path / "full.toml", overrides=["training.steps=1", f"output.directory={tmp_path / 'run'}"])
    overrides = ["training.steps=1", f"output.directory={run}"]
    with pytest.raises(ConfigError, match=r"lora\.rank was None, is 4"):
        hanlin.train(finished / "recipe.toml", overrides=overrides, resume=True)


# What a dry run promises ----------------------------------------------------------------------------------------------


def test_a_plan_counts_what_learns(tmp_path: Path):
    path = write_recipe(tmp_path, model={"dtype": "bfloat16", "compute": "bfloat16"}, lora=LORA)
    opened = open_material(load_recipe(Recipe, path), on_note=note)
    model = load_training_model(opened, on_note=note)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    plan = make_plan(opened)
    assert plan.num_trained == sum(parameter.numel() for parameter in lora_parameters(model))
    assert plan.num_parameters == sum(parameter.numel() for parameter in frozen)
    assert plan.memory.weights == sum(one.numel() * one.itemsize for one in model.parameters())
    assert plan.memory.gradients == 4 * plan.num_trained
    assert plan.memory.states == 8 * plan.num_trained


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_its_arithmetic_is_the_passes_arithmetic(tmp_path: Path, targets: Any):
    """torch counts the matrix products of the same passes. Added by hand: attention's own, the adapters' in-place sums
    (torch does not count those), and what the plan leaves out of account: the first block's input needs no gradient.
    """
    path = write_recipe(tmp_path, lora={"rank": 5, "targets": targets}, training={"steps": 2, "batch_pairs": 6})
    opened = open_material(load_recipe(Recipe, path), on_note=note)
    model = load_training_model(opened, on_note=note)
    attended = tokens = 0.0
    with FlopCounterMode(display=False) as counter:
        for step in range(2):
            batch = pack_pairs([opened.data.train[index] for index in opened.order.step(step)])
            batch_logprobs(model, batch).sum().backward()
            attended += sum(s.length * s.prefix_length + s.length**2 / 2 for s in batch.segments)
            tokens += batch.num_tokens
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    attention = 3 * 4 * model.config.num_layers * model.config.num_heads * model.config.head_dim * attended
    first = [model.blocks[0].get_submodule(f"attention.{name}") for name in ("query", "key", "value")]
    unneeded = 2 * tokens * sum(linear.weight.numel() for linear in first)
    by_hand = 0.0
    for linear in adapted(model).values():
        by_hand += 2 * tokens * (linear.up.numel() + linear.down.numel())
    by_hand -= 2 * tokens * sum(one.down.numel() for one in adapted(model).values() if one in first)
    assert make_plan(opened).flops == pytest.approx(products + by_hand + unneeded + attention, rel=0.03)


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_what_a_token_costs_is_what_the_pass_keeps(family: str, dtype: torch.dtype, rank: int):
    """Everything that autograd holds of the blocks after a forward pass, weights and their copies apart."""
    sizes = {"width": 96, "ffn_width": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    model = Transformer(replace(CONFIGS[family], **sizes, windows=(None,) * 3)).to(dtype)
    model.initialize(std=0.1)
    model.compute_dtype = torch.bfloat16
    if rank:
        add_lora(model, LoraConfig(rank=rank), seed=0)
    batch = pack_pairs(random_pairs(4, longest=120))
    attend = SegmentAttention(model.config, batch.segments, model.device)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours and tuple(tensor.shape) not in shapes | {shape[::-1] for shape in shapes}:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_TD = model.hidden(batch.tokens_T, batch.positions_T, attend)
    expected = activation_bytes_per_token(model.config, torch.bfloat16, residual=dtype.itemsize)
    expected += 2 * rank * 7 * model.config.num_layers
    assert sum(kept.values()) / batch.num_tokens == pytest.approx(expected, rel=0.1)
    assert hidden_TD.requires_grad


def test_a_dry_run_says_how_much_is_trained(tmp_path: Path):
    path = write_recipe(tmp_path, lora={})
    result = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--set", "lora.rank=2"])
    assert result.exit_code == 0, result.output
    opened = open_material(load_recipe(Recipe, path, ["lora.rank=2"]), on_note=note)
    model = load_training_model(opened, on_note=note)
    number = sum(parameter.numel() for parameter in lora_parameters(model))
    assert f"trains {number:,} numbers of LoRA adapters" in result.output
    assert not (tmp_path / "run").exists()


def test_the_command_trains_adapters(tmp_path: Path):
    path = write_recipe(tmp_path, training={"steps": 3})
    result = CliRunner().invoke(app, ["train", str(path), "--set", 'lora.targets=["o_proj"]'])
    assert result.exit_code == 0, result.output
    before, after = weights(tmp_path / "model"), weights(tmp_path / "run")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        n for n in before if "o_proj" in n
    }
    assert "[lora]" in (tmp_path / "run" / "recipe.toml").read_text()


def test_a_run_leaves_its_adapter_in_pefts_format_and_another_starts_from_it(tmp_path: Path):
    """RUN/adapter on the base is the run's merged model; as a model of its own it is trained on."""
    recipe = write_recipe(tmp_path, lora={"rank": 2, "rslora": True, "alpha": 3})
    run = hanlin.train(recipe)
    said = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["use_rslora"]) == (2, 3.0, True)
    assert said["base_model_name_or_path"] == str((tmp_path / "model").resolve())
    model, tokenizer = hanlin.load(run / "adapter")
    merged, _ = hanlin.load(run)
    ids = torch.tensor(tokenizer.encode("你好 the fox"))
    torch.testing.assert_close(model.logits(ids), merged.logits(ids), rtol=1e-5, atol=1e-5)
    values = {"model": {"path": str(run / "adapter")}, "output": {"directory": str(tmp_path / "on")}}
    assert (hanlin.train(write_recipe(tmp_path, name="on.toml", **values)) / "model.safetensors").exists()
