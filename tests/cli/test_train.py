"""`hanlin train` as a user meets it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanlin.training.checkpoint import checkpoints
from hanlin.training.metrics import read_metrics
from tiny_run import rows, write_recipe, write_rows


def test_a_run_from_the_recipe_to_the_model(command, tmp_path: Path):
    answer = command("train", write_recipe(tmp_path))
    assert answer.status == 0
    assert "done" in answer.out
    assert f"hanlin chat {tmp_path / 'run'}" in answer.out
    assert "step 6/6 loss" in answer.err
    assert "held out at step 0" in answer.err
    assert "held out at step 6" in answer.err
    assert (tmp_path / "run" / "config.json").exists()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(command, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answer = command("train", recipe, "--dry-run")
    assert answer.status == 0
    for said in (
        "format 对话格式: smollm2",
        "14 pairs: 14 kept, 0 dropped (max_length = 8192)",
        "6 steps, 2.18 epochs, ",
        " s on cpu, ",
        "about 0.9 GB: process 0.85, ",
        "16 GB: fits, 0.9 GB",
    ):
        assert said in answer.out
    assert "the checkpoint has no chat template: using the smollm2 format" in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_lines_for_a_file_are_not_broken_at_80_columns(command, tmp_path: Path):
    answer = command("train", write_recipe(tmp_path), "--dry-run")
    assert len([line for line in answer.out.splitlines() if line.startswith("6 steps") and line.endswith("%)")]) == 1


def test_a_dry_run_counts_what_is_left_out(command, tmp_path: Path):
    good, long = rows(10), {"id": "long-one", "prompt": "x q " * 300, "chosen": "yes", "rejected": "no"}
    write_rows(tmp_path / "pairs.jsonl", [*good, long, {"prompt": "hi", "chosen": "same", "rejected": "same"}])
    recipe = write_recipe(tmp_path, data={"on_bad_row": "skip", "max_length": 200})
    answer = command("train", recipe, "--dry-run")
    assert answer.status == 0
    assert "1 × too long: long-one (" in answer.out
    assert "1 pairs dropped: too long (long-one (" in answer.err
    assert "1 × equal answers, first in" in answer.err
    assert "line 12: equal answers" in answer.err


def test_overrides_change_the_plan(command, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    answer = command("train", recipe, "--dry-run", "--set", "training.steps=2", "--set", "data.held_out_pairs=0")
    assert "2 steps, 0.57 epochs" in answer.out


def test_the_schema_needs_no_recipe(command):
    answer = command("train", "--schema")
    assert answer.status == 0
    schema = json.loads(answer.out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    sections = {"model", "data", "chat", "lora", "objective", "training", "parallel", "track", "output"}
    assert sections == set(schema["properties"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.steps", "should have the form section.key=value"),
        ("training.steps=", "has no value"),
        ("training.stepps=3", "did you mean training.steps?"),
        ("training.steps=many", "should be a whole number"),
        ("training.steps=[1", "is not TOML"),
        ("model.path.deep=1", "is not a section"),
    ],
)
def test_a_wrong_override_is_one_line(command, tmp_path: Path, override: str, said: str):
    answer = command("train", write_recipe(tmp_path), "--set", override)
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert said in answer.err


def test_a_finished_run_is_neither_overwritten_nor_trained_again(command, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    assert command("train", recipe).status == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = command("train", recipe)
    assert again.status == 2
    assert "holds a finished model" in again.err
    resumed = command("train", recipe, "--resume")
    assert resumed.status == 0
    assert "is finished" in resumed.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == written


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path: Path):
    """In a process of its own; the command that it prints is then run as it stands."""
    folder = tmp_path / "it's [bold] 中文"  # nothing of a path is markup, and a shell must take it back
    folder.mkdir()
    recipe = write_recipe(folder, training={"steps": 40})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    hanlin = [sys.executable, "-m", "hanlin.cli"]
    process = subprocess.Popen(
        [*hanlin, "train", str(recipe)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    while len(read_metrics(folder / "run")) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (saved,) = checkpoints(folder / "run")
    assert f"stopped after step {int(saved.name.removeprefix('step-'))}; a checkpoint is saved" in out
    program, *arguments = shlex.split(out.strip().splitlines()[-1])
    assert program == "hanlin"
    resumed = subprocess.run([*hanlin, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    steps = [record["step"] for record in read_metrics(folder / "run") if "loss" in record]
    assert steps == list(range(1, 41))
