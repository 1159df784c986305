"""Checkpoints are whole or not there: what a killed run, a full disk or a damaged file leaves behind."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.errors import CheckpointError, TrainingError
from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.objectives.orpo import OrpoConfig, orpo
from hanlin.training import checkpoint as module
from hanlin.training.checkpoint import Progress, checkpoints, restore_checkpoint, save_checkpoint
from hanlin.training.loop import make_optimizer
from hanlin.training.recipe import TrainingConfig
from tiny import random_pairs, tiny_model

Trained = tuple[Transformer, torch.optim.Optimizer]


def train(model: Transformer, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    """One optimizer step."""
    pairs = random_pairs(3, seed=seed)
    orpo(model, pack_pairs(pairs), count_pairs(pairs), config=OrpoConfig()).total.backward()
    optimizer.step()
    optimizer.zero_grad()


def fresh(*, seed: int = 0) -> Trained:
    model = tiny_model("gemma3", seed=seed)
    return model, make_optimizer(model, TrainingConfig(learning_rate=1e-2, weight_decay=0.1))


@pytest.fixture
def trained() -> Trained:
    model, optimizer = fresh()
    for seed in range(3):
        train(model, optimizer, seed=seed)
    return model, optimizer


def save(run: Path, trained: Trained, step: int, *, keep_last: int = 9) -> Path:
    model, optimizer = trained

    def write_model(directory: Path) -> None:
        save_model(model, directory)

    progress = Progress(step=step, pairs=4 * step, tokens=100 * step, data="abc", threads=1, torch="2")
    return save_checkpoint(run, progress, model, optimizer, write_model=write_model, keep_last=keep_last)


def assert_same(one: Transformer, other: Transformer) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_restored_run_goes_on_bit_for_bit(trained: Trained, tmp_path: Path):
    path = save(tmp_path, trained, 3)
    restored = fresh(seed=9)
    progress = restore_checkpoint(path, *restored)
    assert progress == Progress(step=3, pairs=12, tokens=300, data="abc", threads=1, torch="2")
    for seed in range(3, 6):
        train(*trained, seed=seed)
        train(*restored, seed=seed)
    assert_same(restored[0], trained[0])


def test_bf16_weights_and_moments_come_back_as_they_were(tmp_path: Path):
    model = tiny_model("llama").bfloat16()
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=1e-2))
    train(model, optimizer, seed=0)
    path = save(tmp_path, (model, optimizer), 1)
    other = tiny_model("llama", seed=9).bfloat16()
    again = make_optimizer(other, TrainingConfig(learning_rate=1e-2))
    restore_checkpoint(path, other, again)
    train(model, optimizer, seed=1)
    train(other, again, seed=1)
    assert_same(other, model)


def test_the_newest_are_kept(trained: Trained, tmp_path: Path):
    for step in (2, 10, 999_999, 1_000_000):
        save(tmp_path, trained, step, keep_last=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-999999", "step-1000000"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1000000", "step-999999"]


def test_saving_a_step_again_replaces_it(trained: Trained, tmp_path: Path):
    save(tmp_path, trained, 3)
    train(*trained, seed=7)
    path = save(tmp_path, trained, 3)
    model, optimizer = fresh()
    restore_checkpoint(path, model, optimizer)
    assert_same(model, trained[0])


def test_half_written_and_half_removed_directories_are_never_found(trained: Trained, tmp_path: Path):
    whole = save(tmp_path, trained, 3)
    for name in (".partial-000004", ".removed-step-000002"):
        shutil.copytree(whole, whole.with_name(name))
    (whole.with_name("step-000005") / "state").mkdir(parents=True)
    assert checkpoints(tmp_path) == [whole]
    assert checkpoints(tmp_path / "elsewhere") == []
    later = save(tmp_path, trained, 6)
    assert checkpoints(tmp_path) == [whole, later]
    hidden = [path.name for path in whole.parent.iterdir() if path.name.startswith(".")]
    assert hidden == []


WRITES = ["weights.safetensors", "moments.safetensors", "model.safetensors"]


@pytest.mark.parametrize("full_at", WRITES)
def test_a_full_disk_is_one_line_and_loses_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
):
    """The disk fills up inside this file: half of it is there."""
    whole = save(tmp_path, trained, 3)
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    from hanlin.models import tensorfile, weights

    write = tensorfile.write_tensors

    def fill(path: Path, tensors: Any, dtype: torch.dtype) -> None:
        write(path, tensors, dtype)
        if full_at in path.name:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_tensors", fill)
    monkeypatch.setattr(weights, "write_tensors", fill)
    with pytest.raises(TrainingError) as caught:
        save(tmp_path, trained, 4, keep_last=1)
    message = str(caught.value)
    assert "\n" not in message
    assert "step-000004" in message
    assert "No space left on device" in message
    assert "--resume" in message
    assert ".partial" not in message
    assert [path.name for path in whole.parent.iterdir()] == ["step-000003"]
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    assert checkpoints(tmp_path) == [whole]
    save(tmp_path, trained, 4)


def test_a_really_full_disk(trained: Trained, tmp_path: Path):
    """The kernel itself says no: every file of this process may have at most 40 kB."""
    import resource
    import signal

    whole = save(tmp_path, trained, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(TrainingError, match="step-000004 could not be written"):
            save(tmp_path, trained, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints(tmp_path) == [whole]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


DAMAGES = [
    (name, damage)
    for name in ("weights.safetensors", "moments.safetensors", "progress.json")
    for damage in (cut, garble, Path.unlink)
    if (name, damage) != ("progress.json", Path.unlink)  # then it is no checkpoint at all
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_named(trained: Trained, tmp_path: Path, name: str, damage: Any):
    path = save(tmp_path, trained, 3)
    damage(path / "state" / name)
    with pytest.raises(CheckpointError) as caught:
        restore_checkpoint(path, *fresh())
    assert str(path) in str(caught.value)
    assert "remove it and --resume" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}x", '{"steps": 3}', '{"step": 3', '"step"'])
def test_progress_that_makes_no_sense_is_refused(trained: Trained, tmp_path: Path, text: str):
    path = save(tmp_path, trained, 3)
    (path / "state" / "progress.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_checkpoint(path, *fresh())


def test_a_checkpoint_of_another_model_is_refused(trained: Trained, tmp_path: Path):
    path = save(tmp_path, trained, 3)
    smaller = Transformer(replace(trained[0].config, width=16))
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_checkpoint(path, smaller, make_optimizer(smaller, TrainingConfig()))
