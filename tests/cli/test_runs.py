"""`hanlin runs` on run directories: what is found, in which state, and how two are told apart. No torch is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hanlin.errors import ConfigError
from hanlin.training.runs import differences, find_runs, open_run, running
from tiny_run import write_recipe

RECIPE = """
[model]
path = "org/{model}"
[objective]
kind = "orpo"
preset = "trl"
[training]
seed = {seed}
steps = 4
"""


def write_run(path: Path, *, model: str = "base", seed: int = 42, lora: bool = False, finished: bool = True) -> Path:
    path.mkdir(parents=True)
    text = RECIPE.format(model=model, seed=seed) + ("[lora]\nrank = 8\n" if lora else "")
    (path / "recipe.toml").write_text(text, encoding="utf-8")
    records: list[dict[str, Any]] = [{"step": 0, "eval_nll_loss": 2.0, "eval_rewards/accuracies": 0.5}]
    for step in range(1, 5):
        nll = 2 - step / 8
        records.append({"step": step, "loss": nll + 0.1, "nll_loss": nll, "rewards/accuracies": 0.6})
        records[-1] |= {"tokens_per_second": 1234.5, "learning_rate": 1e-6}
    records.append({"step": 4, "eval_nll_loss": 1.25, "eval_rewards/accuracies": 0.75})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(lines + '{"step": 5, "lo', encoding="utf-8")
    if finished:
        (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def test_runs_are_found_newest_first_and_checkpoints_are_none(tmp_path: Path):
    for number, name in enumerate(("old", "deep/er/new")):
        run = write_run(tmp_path / name)
        os.utime(run / "metrics.jsonl", (number, number))
    write_run(tmp_path / "old" / "checkpoints" / "step-000002")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "recipe.toml").write_text(RECIPE.format(model="x", seed=1), encoding="utf-8")
    assert [run.path.name for run in find_runs([tmp_path])] == ["new", "old"]
    assert [run.path.name for run in find_runs([tmp_path / "old", tmp_path])] == ["new", "old"]
    with pytest.raises(ConfigError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="is not a run"):
        open_run(tmp_path / "recipes")


def test_what_a_run_says_of_itself(tmp_path: Path):
    run = open_run(write_run(tmp_path / "run", lora=True))
    assert (run.model, run.objective, run.step, run.state) == ("base", "orpo trl lora 8", 4, "finished")
    assert (run.final["loss"], run.final["eval_nll_loss"]) == (1.6, 1.25)


def test_states(tmp_path: Path):
    run = write_run(tmp_path / "run", finished=False)
    assert open_run(run).state == "interrupted"
    with running(run):
        assert open_run(run).state == "running"
    assert open_run(run).state == "interrupted"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = run / ".running"
    said = {"host": os.uname().nodename, "process": gone.pid}
    mark.write_text(json.dumps(said))
    assert open_run(run).state == "interrupted"  # killed, and nobody took the mark away
    mark.write_text(json.dumps(said | {"host": "elsewhere"}))
    assert open_run(run).state == "running"
    os.utime(run / "metrics.jsonl", (1, 1))
    assert open_run(run).state == "interrupted"
    mark.write_text("{")
    assert open_run(run).state == "interrupted"


def test_a_real_run_is_running_while_it_runs_and_finished_after(tmp_path: Path):
    import hanlin

    seen: list[str] = []

    class Watch:
        def step(self, *_: Any) -> None:
            seen.append(open_run(tmp_path / "run").state)

        def evaluated(self, *_: Any) -> None: ...
        def saved(self, *_: Any) -> None: ...

    hanlin.train(write_recipe(tmp_path), observer=Watch())
    run = open_run(tmp_path / "run")
    assert set(seen) == {"running"}
    assert (run.state, run.step, run.model) == ("finished", 6, "model")
    assert run.final["tokens_per_second"] > 0


def test_the_list(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    write_run(tmp_path / "first")
    write_run(tmp_path / "second", model="other", finished=False)
    answer = command("runs", tmp_path)
    assert answer.status == 0
    for words in ("first", "other", "orpo trl", "finished 完成", "interrupted 中断", "1.6", "准确率 0.750", "1234"):
        assert words in answer.out, words
    found = json.loads(command("runs", tmp_path, "--json").out)
    assert {run["state"] for run in found} == {"finished", "interrupted"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "没有找到运行" in command("runs", "empty").err
    assert command("runs").status == 2  # there is no ./runs


def test_the_list_on_a_narrow_terminal_cuts_nothing(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs") / "a-run-with-a-long-name", finished=False, lora=True)
    answer = command("runs")
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "…" not in answer.out
    for words in ("interrupted", "中断", "1.6", "accuracy 0.750", "NLL 1.250"):
        assert words in answer.out, words


def test_the_comparison(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=7, lora=True)
    assert differences([open_run(one), open_run(two)]) == {"training.seed": [42, 7], "lora.rank": [None, 8]}
    plot = tmp_path / "new" / "curves.png"
    answer = command("runs", "compare", one, two, "--plot", plot)
    assert answer.status == 0
    for words in ("training.seed", "42", "lora.rank", "–", "eval_nll_loss", "1.25", str(plot)):
        assert words in answer.out, words
    assert "training.steps" not in answer.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(command("runs", "compare", one, two, "--plot", plot, "--json").out)
    assert report["differences"]["training.seed"] == [42, 7]
    same = command("runs", "compare", one, one, "--plot", plot)
    assert "recipe 配方: equal 相同" in same.out


def test_mistakes_are_one_line(tmp_path: Path, command: Any):
    run = write_run(tmp_path / "run")
    for arguments, words in (
        (("compare", run), "two runs or more"),
        (("compare", run, tmp_path), "is not a run"),
        ((tmp_path / "nowhere",), "is not a folder"),
    ):
        answer = command("runs", *arguments)
        assert (answer.status, words in answer.err) == (2, True)
    (run / "recipe.toml").write_text("[model", encoding="utf-8")
    assert "cannot be read" in command("runs", tmp_path).err


def test_no_torch_is_loaded(tmp_path: Path):
    write_run(tmp_path / "run")
    code = f"import sys; sys.argv = ['hanlin', 'runs', {str(tmp_path)!r}]\nfrom hanlin.cli.app import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
