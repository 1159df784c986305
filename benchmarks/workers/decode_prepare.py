"""Makes ready what both sides of the decoding benchmark read: the model as a bf16 directory, prompts as ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker import answer

from hanlin.models.weights import load_model, save_model
from hanlin.text.tokenizer import Tokenizer

TEXT = (
    "The history of paper begins in China, where craftsmen learned to make sheets from bark, hemp and old nets. "
    "From there it travelled along the trade routes, first to Korea and Japan, then to Samarkand and Baghdad, and "
    "reached Europe many centuries later. Each place changed the recipe a little: other fibres, other sizes, water "
    "mills to pound the pulp. Printers wanted it smooth, painters wanted it soft, merchants wanted it cheap. "
)


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write `directory`/model; give the ids of a text long enough for every prompt."""
    source = Path(settings["model"])
    save_model(load_model(source, dtype="bfloat16"), Path(settings["directory"]) / "model", dtype="bfloat16")
    tokenizer = Tokenizer.from_gguf(source) if source.suffix == ".gguf" else Tokenizer.from_directory(source)
    return {"ids": tokenizer.encode(TEXT * (1 + settings["num_ids"] // 80))}


if __name__ == "__main__":
    answer(measure)
