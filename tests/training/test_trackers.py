"""Trackers: TRL's names, the services' own interfaces, failures that stop nothing, and samples that disturb nothing."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hanlin.api import sampler, train
from hanlin.config import load_recipe
from hanlin.errors import ConfigError
from hanlin.evaluation.samples import SAMPLE_PROMPTS, language_numbers
from hanlin.models.tensorfile import read_header
from hanlin.models.transformer import Transformer
from hanlin.training.metrics import read_metrics
from hanlin.training.recipe import Recipe
from hanlin.training.session import Session, open_material
from hanlin.training.trackers import Sample, TrackConfig, check_trackers, open_trackers, tracked_name
from tiny_run import write_recipe

SAMPLES = (Sample("你好", "世界", True), Sample("hi", "there", False))


class Service:
    """What wandb and trackio have in common, writing down how it is called."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing = failing

    def _call(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if name == self.failing:
            raise ConnectionError("no network\nand a long story")

    def init(self, **given: Any) -> "Service":
        self._call("init", given)
        return self

    def log(self, numbers: dict[str, Any], *, step: int) -> None:
        self._call("log", (step, numbers))

    def finish(self) -> None:
        self._call("finish", None)

    def Table(self, *, columns: list[str], data: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
        return columns, data

    def Markdown(self, text: str) -> str:
        return text


def install(monkeypatch: pytest.MonkeyPatch, name: str, service: Service) -> None:
    module = ModuleType(name)
    module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
    for method in ("init", "log", "finish", "Table", "Markdown"):
        setattr(module, method, getattr(service, method))
    monkeypatch.setitem(sys.modules, name, module)


def test_names_are_those_of_transformers():
    from transformers.integrations.integration_utils import rewrite_logs

    names = ["loss", "rewards/accuracies", "eval_loss", "eval_rewards/margins", "epoch", "eval_language/zh/pass"]
    assert [tracked_name(name) for name in names] == list(rewrite_logs(dict.fromkeys(names, 0.0)))


def test_a_service_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "hanlin\[wandb\]"'):
        check_trackers(TrackConfig(to=("wandb",)))
    recipe = load_recipe(Recipe, write_recipe(tmp_path, track={"to": ["trackio"]}))
    with pytest.raises(ConfigError, match="trackio, which is not installed"):  # before anything is read
        open_material(recipe)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_a_service_is_told(name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    service, notes = Service(), []
    install(monkeypatch, name, service)
    config = TrackConfig(to=(name,), project="p")
    (tracker,) = open_trackers(config, tmp_path, {"model": {"path": "m"}}, first_step=0, on_note=notes.append)
    tracker.log(1, {"loss": 0.5, "eval_loss": 0.25})
    tracker.show(1, SAMPLES)
    tracker.close()
    (_, given), *rest = service.calls
    assert (given["project"], given["name"], given["config"]) == ("p", tmp_path.name, {"model": {"path": "m"}})
    assert given["resume"] == "allow"
    assert rest[0] == ("log", (1, {"train/loss": 0.5, "eval/loss": 0.25}))
    assert "世界" in str(rest[1])
    assert rest[2] == ("finish", None)
    if name == "wandb":
        open_trackers(config, tmp_path, {}, first_step=4, on_note=notes.append)
        assert service.calls[-1][1]["id"] == given["id"] == (tmp_path / "wandb.id").read_text()
    assert notes == []


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_failure_is_told_once_and_ends_the_tracker(failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    service, notes = Service(failing), []
    install(monkeypatch, "wandb", service)
    (tracker,) = open_trackers(TrackConfig(to=("wandb",)), tmp_path, {}, first_step=0, on_note=notes.append)
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
        tracker.show(step, SAMPLES)
    tracker.close()
    tracker.close()
    (text,) = notes
    assert text == "wandb failed (no network): the run goes on without it, metrics.jsonl has everything"
    assert [call for call, _ in service.calls].count(failing) == 1


def test_a_failing_service_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any):
    install(monkeypatch, "trackio", Service("log"))
    run = train(write_recipe(tmp_path, track={"to": ["trackio"]}))
    assert max(record["step"] for record in read_metrics(run)) == 6
    assert caplog.text.count("trackio failed (no network)") == 1


def test_every_number_of_the_log_reaches_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    service = Service()
    install(monkeypatch, "wandb", service)
    track = {"to": ["wandb"], "samples": 2, "sample_tokens": 5}
    run = train(write_recipe(tmp_path, track=track, training={"evaluate_every": 3}))
    told = [what for call, what in service.calls if call == "log" and "samples" not in what[1]]
    written = [(record.pop("step"), record) for record in read_metrics(run)]
    assert [(step, list(numbers)) for step, numbers in told] == [
        (step, [tracked_name(name) for name in record]) for step, record in written
    ]
    assert [what[0] for call, what in service.calls if call == "log" and "samples" in what[1]] == [0, 3, 6]
    assert service.calls[-1][0] == "finish"


def test_tensorboard_reads_what_we_write(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    notes: list[str] = []
    (tracker,) = open_trackers(TrackConfig(to=("tensorboard",)), tmp_path, {}, first_step=0, on_note=notes.append)
    tracker.log(1, {"loss": 0.5, "eval_loss": 0.25})
    tracker.show(1, SAMPLES)
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["train/loss", "eval/loss"]
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 0.5)]
    assert notes == []


def state_of(run: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, stored in read_header(run / "model.safetensors").items():
        tensors[name] = torch.empty(stored.shape, dtype=stored.dtype)
        stored.copy_to(tensors[name])
    return tensors


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_samples_change_no_bit_of_the_run_and_no_random_number(lora: dict[str, Any] | None, tmp_path: Path):
    """The same run with and without samples: equal weights and numbers, but for how long steps took."""
    runs, states = [], []
    for name, track in (("with", {"samples": 3, "sample_tokens": 6}), ("without", {"samples": 0})):
        sections = {"track": track, "output": {"directory": str(tmp_path / name)}, **({"lora": lora} if lora else {})}
        torch.manual_seed(0)
        runs.append(train(write_recipe(tmp_path, training={"evaluate_every": 2}, **sections)))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    ours, theirs = (state_of(run) for run in runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    numbers = [
        [(record["step"], record["loss"], record["grad_norm"]) for record in read_metrics(run) if "loss" in record]
        for run in runs
    ]
    assert numbers[0] == numbers[1]
    assert not (runs[1] / "samples.jsonl").exists()
    taken = [json.loads(line) for line in (runs[0] / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in taken] == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    assert [record["prompt"] for record in taken[:3]] == [one.messages[-1].content for one in SAMPLE_PROMPTS[:3]]
    measured = [record for record in read_metrics(runs[0]) if "eval_language/zh/pass" in record]
    assert [record["step"] for record in measured] == [0, 2, 4, 6]


def test_a_resumed_run_repeats_no_sample(tmp_path: Path):
    changes: dict[str, Any] = {"training": {"evaluate_every": 2, "save_every": 3}}
    recipe = write_recipe(tmp_path, track={"samples": 1, "sample_tokens": 4}, **changes)

    class Stop(Exception): ...

    class AtFive:
        def step(self, progress: Any, num_steps: int, metrics: dict[str, float]) -> None:
            if progress.step == 5:
                raise Stop

        def evaluated(self, progress: Any, scores: Any) -> None: ...
        def saved(self, path: Path) -> None: ...

    with pytest.raises(Stop):
        train(recipe, observer=AtFive())
    run = train(recipe, resume=True)
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4, 6]


def test_no_memory_for_samples_is_told_once(tmp_path: Path):
    recipe = load_recipe(Recipe, write_recipe(tmp_path, track={"samples": 1}, training={"evaluate_every": 2}))
    notes: list[str] = []

    def look(model: Transformer) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert Session(open_material(recipe), tmp_path / "run", resume=False, on_note=notes.append).train(look=look)
    assert [note for note in notes if "no memory is left for sample answers" in note] == [notes[-1]]


def test_prompts_are_chinese_and_english_by_turns_and_measured(tmp_path: Path):
    assert [prompt.language for prompt in SAMPLE_PROMPTS] == ["zh", "en"] * 4
    material = open_material(load_recipe(Recipe, write_recipe(tmp_path, track={"samples": 8, "sample_tokens": 3})))
    session = Session(material, tmp_path / "run", resume=False)
    looked = sampler(material)(session.model)
    assert len(looked.samples) == 8
    assert {name.split("/")[1] for name in looked.numbers} == {"zh", "en"}
    assert language_numbers([]) == {}
