"""A whole training run in a blink: a tiny model directory, a few bilingual pairs and a recipe, all on disk."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.text.tokenizer import Tokenizer
from tiny import CONFIGS
from tiny_text import write_directory

TOKENIZERS = {
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "llama": "llama3",
    "smollm2": "smollm2",
    "qwen2": "qwen2.5",
}
QUESTIONS = ("你好！", "写一首诗。", "what is a fox?", "Who are you, the model?", "春天的世界")
ANSWERS = ("世界，你好。", "the quick fox", "lazy dog over", "春天的诗！", "user user", "关于春天", "hello 世界")


def write_model(path: Path, *, family: str = "smollm2", seed: int = 0) -> Path:
    """A directory with a random fp32 model of the family and a tokenizer that fits it."""
    write_directory(path, TOKENIZERS[family])
    model = Transformer(replace(CONFIGS[family], vocab_size=Tokenizer.open(path).size))
    model.initialize(std=0.2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.2, generator=generator)
    save_model(model, path, dtype="float32")
    return path


def rows(number: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Plain pairs with different answers, each with an id of its own."""
    source = random.Random(seed)
    made = []
    for index in range(number):
        chosen, rejected = source.sample(ANSWERS, 2)
        question = " ".join(source.choices(QUESTIONS, k=source.randint(1, 3)))
        made.append({"id": f"row-{index}", "prompt": question, "chosen": chosen, "rejected": rejected})
    return made


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, *, name: str = "recipe.toml", **changes: dict[str, Any]) -> Path:
    """FOLDER/recipe.toml, which trains FOLDER/model on FOLDER/pairs.jsonl into FOLDER/run for six steps, and what it
    names unless it is there.
    """
    if not (folder / "model").exists():
        write_model(folder / "model")
    if not (folder / "pairs.jsonl").exists():
        write_rows(folder / "pairs.jsonl", rows(14))
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": str(folder / "model"), "compute": "float32"},
        "data": {"train": [str(folder / "pairs.jsonl")], "held_out_pairs": 3},
        "training": {"steps": 6, "batch_pairs": 4, "tokens_per_pass": 90, "learning_rate": 1e-3, "device": "cpu"},
        "output": {"directory": str(folder / "run"), "save_dtype": "float32"},
    }
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    # JSON's numbers, strings, lists and booleans are TOML too.
    lines = [
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for section, values in sections.items()
    ]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
