"""`hanlin train` with every objective: what people see of it."""

from pathlib import Path

import pytest

from tiny_objectives import CASES, instructions, recipe_of
from tiny_run import write_recipe, write_rows


@pytest.mark.parametrize("name", ["sft", "pretraining", "distillation", "dpo", "simpo", "reward"])
def test_people_see_progress_and_a_table(command, tmp_path: Path, name: str):
    answer = command("train", recipe_of(tmp_path, name))
    assert answer.status == 0, answer.err
    assert "step 6/6 loss" in answer.err
    texts = CASES[name][0]["kind"] in ("sft", "pretraining", "distillation")
    shown = "divergence" if name == "distillation" else "perplexity"
    assert ("hanlin chat" in answer.out) == (name != "reward"), "a reward model cannot be chatted with"
    assert (shown if texts else "pair accuracy" if name == "reward" else "reward accuracy") in answer.err
    for said in ("Held-out", "before 之前", "after 之后", "NLL" if texts else "accuracy"):
        assert said in answer.out
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"- {CASES[name][0]['kind']}\n" in card


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_plans_it(command, tmp_path: Path, name: str):
    answer = command("train", recipe_of(tmp_path, name), "--dry-run")
    assert answer.status == 0, answer.err
    assert "6 steps, " in answer.out
    assert "about 0.9 GB: process 0.85" in answer.out


def test_an_empty_answer_or_a_lone_question_stops_or_is_skipped(command, tmp_path: Path):
    recipe = recipe_of(tmp_path, "sft")
    bad = [{"instruction": "hi", "output": ""}, {"messages": [{"role": "user", "content": "hi"}]}]
    write_rows(tmp_path / "texts.jsonl", [*instructions(14), *bad])
    stopped = command("train", recipe, "--dry-run")
    assert stopped.status == 2
    assert "texts.jsonl, line 15: the answer is empty" in stopped.err
    skipped = command("train", recipe, "--dry-run", "--set", "data.on_bad_row=skip")
    assert skipped.status == 0
    assert "1 × the conversation does not end with an assistant turn" in skipped.err


def test_rlhf_shows_rewards_and_a_table(command, tmp_path: Path):
    objective = {"kind": "rlhf", "rewards": ["tiny_rewards:letters"], "max_tokens": 6, "cut_limit": 1.0}
    recipe = write_recipe(tmp_path, objective=objective)
    planned = command("train", recipe, "--dry-run")
    assert planned.status == 0, planned.err
    assert "14 prompts: 14 kept" in planned.out
    assert "6 steps, " in planned.out
    answer = command("train", recipe)
    assert answer.status == 0, answer.err
    assert "step 6/6 reward " in answer.err
    assert " · KL " in answer.err
    assert "held out at step 6 留出集: reward " in answer.err
    for said in ("Held-out prompts", "reward", "not cut", "before 之前", "after 之后"):
        assert said in answer.out
    assert "- rlhf\n" in (tmp_path / "run" / "README.md").read_text()


def test_rlhf_that_runs_away_ends_with_a_clear_word(command, tmp_path: Path):
    objective = {"kind": "rlhf", "rewards": ["tiny_rewards:letters"], "max_tokens": 6, "cut_limit": 0.01}
    answer = command("train", write_recipe(tmp_path, objective=objective))
    assert answer.status == 2
    assert "ran on to objective.max_tokens = 6" in " ".join(answer.err.split())
    assert "--resume" in answer.err
