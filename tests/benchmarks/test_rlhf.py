"""What benchmarks/rlhf.py measures on: enough held-out questions, none of them learnt from; and what it prints."""

import rlhf


def test_the_held_out_questions_are_chinese_and_not_learnt_from():
    learnt, held_out = (rlhf.chinese_prompts(path) for path in (rlhf.PROMPTS, rlhf.HELD_OUT))
    assert len(held_out) >= rlhf.NUM_HELD_OUT
    questions = {row["prompt"][-1]["content"] for row in learnt}
    assert not questions.intersection(row["prompt"][-1]["content"] for row in held_out)
    assert all("answer" not in row and "chosen" not in row for row in (*learnt, *held_out))


def test_the_table_has_a_row_for_every_evaluation():
    held_out = {"eval_reward": 0.5, "eval_completions/mean_length": 30.0, "eval_completions/clipped_ratio": 0.25}
    step = {"step": 10, "reward": 0.7, "objective/kl": 1.5, "generation_share": 0.4}
    table = rlhf.table([{"step": 0, **held_out}, step, {"step": 10, **held_out, "eval_reward": 0.75}])
    assert table.splitlines()[2:] == [
        "| 0 | 0.500 | 30.0 | 25% | 0 | – |",
        "| 10 | 0.750 | 30.0 | 25% | 1.50 | 40% |",
    ]
