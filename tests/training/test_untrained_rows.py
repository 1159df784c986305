"""A base model's untrained control rows when training starts: told, and given a start or kept as the recipe says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.config import load_recipe
from hanlin.models.weights import load_model, save_model
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.recipe import Recipe
from hanlin.training.session import load_training_model, open_material
from tiny_run import write_model, write_recipe


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("choice", ["mean", "keep"])
def test_untrained_rows_when_training_starts(choice: str, lora: dict[str, Any] | None, tmp_path: Path):
    folder = write_model(tmp_path / "model", family="llama")
    stop = Tokenizer.open(folder).control["<|eot_id|>"]
    model = load_model(folder)
    model.embed.weight.data[stop] = 0
    save_model(model, folder, dtype="float32")
    values = {"path": str(folder), "untrained_rows": choice}
    recipe = load_recipe(Recipe, write_recipe(tmp_path, model=values, **({"lora": lora} if lora else {})))
    notes: list[str] = []
    material = open_material(recipe, on_note=notes.append)
    started = load_training_model(material, on_note=notes.append)
    (note,) = [note for note in notes if "untrained" in note]
    assert note.startswith("embed_tokens has untrained rows for <|eot_id|>: ")
    assert ("mean of the trained rows" in note) == (choice == "mean")
    assert bool(started.embed.weight[stop].any()) == (choice == "mean")
    again = load_training_model(material, on_note=notes.append)
    assert torch.equal(started.embed.weight, again.embed.weight)
