"""A recipe of every objective, with data, small enough to run in a blink."""

from pathlib import Path
from typing import Any

from tiny_run import rows, write_model, write_recipe, write_rows

TEXTS = {"loss", "nll_loss", "grad_norm", "learning_rate", "epoch"}
REWARDS = {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "grad_norm"}
CASES: dict[str, tuple[dict[str, Any], set[str], str]] = {  # [objective], numbers of a step, a number of held-out ones
    "sft": ({"kind": "sft"}, TEXTS | {"conversations_per_second"}, "eval_perplexity"),
    "sft last": ({"kind": "sft", "score": "last"}, TEXTS, "eval_nll_loss"),
    "dpo": ({"kind": "dpo"}, REWARDS | {"logps/chosen", "pairs_per_second"}, "eval_rewards/accuracies"),
    "pretraining": ({"kind": "pretraining"}, TEXTS | {"pieces_per_second"}, "eval_perplexity"),
    "pretraining mixed": (
        {"kind": "pretraining", "weights": [2, 1], "final_weights": [0, 1], "final_share": 0.4},
        TEXTS,
        "eval_nll_loss",
    ),
    "reward": ({"kind": "reward"}, REWARDS, "eval_rewards/accuracies"),
    "distillation": ({"kind": "distillation", "weight": 0.5}, TEXTS | {"divergence"}, "eval_divergence"),
    "distillation of documents": (
        {"kind": "distillation", "examples": "documents"},
        TEXTS | {"divergence", "pieces_per_second"},
        "eval_divergence",
    ),
    "simpo": ({"kind": "simpo"}, REWARDS | {"logps/rejected"}, "eval_rewards/margins"),
}


def instructions(number: int) -> list[dict[str, str]]:
    """The chosen answers of the tiny pairs, in Alpaca's form."""
    return [{"id": row["id"], "instruction": row["prompt"], "output": row["chosen"]} for row in rows(number)]


def documents(number: int) -> list[dict[str, str]]:
    """Short and long documents."""
    return [{"text": " ".join(row["chosen"] for row in rows(1 + index % 9, seed=index))} for index in range(number)]


def recipe_of(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    """A recipe of this case and its data."""
    objective = dict(CASES[name][0])
    data: dict[str, Any] = {}
    if objective["kind"] == "distillation":
        objective["teacher"] = str(folder / "teacher")
        if not (folder / "teacher").exists():
            write_model(folder / "teacher", seed=1)
    learns_documents = objective["kind"] == "pretraining" or objective.get("examples") == "documents"
    if objective["kind"] in ("sft", "distillation"):
        data = {"train": [str(write_rows(folder / "texts.jsonl", instructions(14)))]}
    if learns_documents:
        write_rows(folder / "one.jsonl", documents(30))
        (folder / "two.txt").write_text("the quick brown fox jumped over the lazy dog\n" * 20)
        sources = ["one.jsonl", "two.txt"] if "weights" in objective else ["one.jsonl"]
        data = {"train": [str(folder / name) for name in sources], "max_length": 24}
    given = {"data": data, "objective": objective, "training": {"save_every": 2, "keep_last": 9, "evaluate_every": 4}}
    for section, values in changes.items():
        given[section] = {**given.get(section, {}), **values}
    return write_recipe(folder, **given)
