"""What learns: frozen layers, four bits under adapters, and updates in the backward pass."""

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import hanlin
from hanlin.config import load_recipe
from hanlin.errors import ConfigError, TrainingError
from hanlin.models.nf4 import packed_matrices
from hanlin.models.weights import load_model
from hanlin.training.learning import check_runs_here
from hanlin.training.metrics import read_metrics
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, load_training_model, open_material
from tiny_run import write_model, write_recipe

FAST = {"learning_rate": 1e-2}
ONE_PASS = {"tokens_per_pass": 4096, "clip": 0}


def note(message: str) -> None:
    """Nobody listens."""


def session(folder: Path, **changes: dict[str, Any]) -> Session:
    recipe = load_recipe(Recipe, write_recipe(folder, **changes))
    return Session(open_material(recipe, on_note=note), folder / "run", resume=False)


def weights(directory: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


def diary(run: Path) -> list[dict[str, Any]]:
    return [{key: v for key, v in record.items() if "per_second" not in key} for record in read_metrics(run)]


# Frozen layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["smollm2", "llama"])
def test_frozen_layers_do_not_move_and_cost_no_gradient_and_no_state(tmp_path: Path, family: str):
    write_model(tmp_path / "model", family=family)
    one = session(tmp_path, training={**FAST, "frozen_layers": 2})
    before = {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}
    frozen = {name for name in before if name.startswith(("embed.", "blocks.0.", "blocks.1."))}
    kept: set[str] = set()

    class Watch:
        def step(self, *_: object) -> None:
            kept.update(name for name, parameter in one.model.named_parameters() if parameter.grad is not None)

        def evaluated(self, *_: object) -> None: ...
        def saved(self, *_: object) -> None: ...

    assert one.train(Watch())
    moved = {name for name, parameter in one.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == before.keys() - frozen
    assert kept == moved
    with_state = {id(parameter) for parameter, state in one.optimizer.state.items() if state}
    assert with_state == {id(parameter) for name, parameter in one.model.named_parameters() if name in moved}


def test_upper_layers_get_the_gradients_of_a_whole_training(tmp_path: Path):
    """Freezing removes gradients; it changes none of the others."""
    found = []
    for number in (0, 2):
        one = session(tmp_path, training={"frozen_layers": number}, output={"directory": str(tmp_path / f"{number}")})
        examples = one.data.train[:4]
        batch = one.material.objective.pack(examples, pad_to=0)
        one.material.objective.loss(one.model, batch, one.material.objective.count(examples)).total.backward()
        found.append({n: p.grad for n, p in one.model.named_parameters() if n.startswith(("blocks.2.", "norm."))})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)


def test_more_frozen_layers_than_there_are_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"frozen_layers = 4, and the model has 3: freeze 2 or fewer"):
        session(tmp_path, training={"frozen_layers": 4})


# Step in backward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"compute": "bfloat16"}},
        {"model": {"dtype": "bfloat16", "compute": "bfloat16"}, "training": {"optimizer": "adamw_bf16"}},
        {"training": {"frozen_layers": 1, "weight_decay": 0.1, "recomputed_layers": 3}},
        {"training": {"tokens_per_pass": 90}},  # some steps have several passes: those are ordinary ones
        {"objective": {"kind": "reward"}},
    ],
    ids=["fp32", "mixed", "bf16", "frozen, decay, recomputed", "several passes", "reward"],
)
def test_updates_in_the_backward_pass_are_those_of_the_ordinary_step_bit_for_bit(tmp_path: Path, changes):
    runs = []
    for at_once in (False, True):
        training = {**FAST, **ONE_PASS, **changes.get("training", {}), "step_in_backward": at_once}
        output = {"directory": str(tmp_path / f"run-{at_once}")}
        path = write_recipe(tmp_path, name=f"{at_once}.toml", **{**changes, "training": training, "output": output})
        runs.append(hanlin.train(path))
    mine, expected = weights(runs[1]), weights(runs[0])
    for name, tensor in expected.items():
        assert torch.equal(mine[name], tensor), name
    for one, other in zip(diary(runs[1]), diary(runs[0]), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_it_really_frees_gradients(tmp_path: Path):
    """In every update at most one parameter has a gradient."""
    one = session(tmp_path, training={**FAST, **ONE_PASS, "step_in_backward": True})
    counts = []
    step = one.optimizer.step

    def counted(*given: Any) -> None:
        counts.append(sum(parameter.grad is not None for parameter in one.model.parameters()))
        step(*given)

    one.optimizer.step = counted  # pyright: ignore[reportAttributeAccessIssue]
    assert one.train()
    assert counts == [1] * (6 * len(list(one.model.parameters())))


def test_a_loss_that_is_not_finite_stops_the_run_before_any_update(tmp_path: Path):
    one = session(tmp_path, training={**FAST, **ONE_PASS, "step_in_backward": True})
    with torch.no_grad():
        one.model.embed.weight[:] = math.nan
    before = one.model.get_parameter("blocks.0.mlp.up.weight").detach().clone()
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite; nothing was updated"):
        one.train()
    assert torch.equal(one.model.get_parameter("blocks.0.mlp.up.weight"), before)


def test_one_process_only(tmp_path: Path):
    path = write_recipe(tmp_path, training={**ONE_PASS, "step_in_backward": True})
    check_runs_here(recipe := load_recipe(Recipe, path), torch.device("cpu"))
    with pytest.raises(ConfigError, match="train with one process"):
        check_runs_here(recipe, torch.device("cpu"), ranks=2)


def test_without_clipping_gradients_stay_as_they_are(tmp_path: Path):
    runs = []
    for clip in (0, 1e9):
        path = write_recipe(tmp_path, name=f"{clip}.toml", training={**FAST, "clip": clip},
            output={"directory": str(tmp_path / f"run-{clip}")})  # fmt: skip
        runs.append(weights(hanlin.train(path)))
    assert all(torch.equal(runs[0][name], tensor) for name, tensor in runs[1].items())


# Four bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orpo", "reward"])
def test_a_qlora_run_learns_saves_and_resumes(tmp_path: Path, kind: str):
    pytest.importorskip("bitsandbytes")
    changes: dict[str, Any] = {"model": {"quantization": "nf4"}, "lora": {"rank": 4, "alpha": 8.0}}
    changes |= {"objective": {"kind": kind}}
    path = write_recipe(tmp_path, **changes, training={**FAST, "steps": 12, "save_every": 6})
    model = load_training_model(open_material(load_recipe(Recipe, path), on_note=note), on_note=note)
    assert len(packed_matrices(model)) == 21
    run = hanlin.train(path)
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert sum(losses[-4:]) < sum(losses[:4])
    resumed = tmp_path / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-000006").rename(resumed / "checkpoints" / "step-000006")
    for file in ("recipe.toml", "metrics.jsonl"):
        (resumed / file).write_bytes((run / file).read_bytes())
    hanlin.train(path, overrides=[f"output.directory={resumed}"], resume=True)
    mine, expected = weights(resumed), weights(run)
    assert all(torch.equal(mine[name], tensor) for name, tensor in expected.items())


def test_what_is_saved_of_a_qlora_run_computes_what_was_trained(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    one = session(tmp_path, model={"quantization": "nf4"}, lora={"rank": 4, "alpha": 8.0}, training=FAST)
    assert one.train()
    ids = torch.tensor(one.material.tokenizer.encode("你好 world fox"))
    logits_TV = one.model.logits(ids).detach()
    one.finish()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    saved = load_model(tmp_path / "run", dtype="float32")
    torch.testing.assert_close(saved.logits(ids), logits_TV, rtol=1e-4, atol=1e-4)
