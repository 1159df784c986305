"""recipes/speedrun.sh: the whole story on a tiny model, gone on with after a stop, and one line where a stage fails."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.text.tokenizer import Tokenizer
from tiny import CONFIGS
from tiny_text import write_directory

ROOT = Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "reward", "orpo", "rlhf", "evaluate", "chat")


def speedrun(run: Path, model: Path | str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BIN": str(Path(sys.executable).parent), "MODEL": str(model), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = ["bash", str(ROOT / "recipes" / "speedrun.sh"), str(run)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_a_stage_that_fails_is_one_line(tmp_path: Path):
    done = speedrun(tmp_path / "run", tmp_path / "nowhere")
    assert done.returncode == 2
    [said] = done.stderr.splitlines()
    assert said.startswith("speedrun: the stage fetch failed: error")
    assert f"{tmp_path / 'nowhere'}" in said
    assert "log/fetch.log; run again to go on" in said


@pytest.mark.slow
def test_the_whole_story_and_again(tmp_path: Path):
    write_directory(tmp_path / "model", "smollm2")
    size = Tokenizer.open(tmp_path / "model").size
    model = Transformer(replace(CONFIGS["smollm2"], vocab_size=size, max_length=8192))
    model.initialize(std=0.1)
    save_model(model, tmp_path / "model", dtype="float32")
    run = tmp_path / "run"
    done = speedrun(run, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    table = (run / "speedrun.md").read_text(encoding="utf-8")
    assert table in done.stdout
    rows = [line.split("|")[1].strip() for line in table.splitlines()]
    assert rows[2:] == [*STAGES, "all 合计"]
    (run / "log" / "chat.seconds").unlink()
    again = speedrun(run, tmp_path / "model")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == len(STAGES) + 1
    assert "== chat\n" in again.stdout
