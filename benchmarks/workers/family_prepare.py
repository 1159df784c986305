"""Makes ready what every side of the benchmark of SFT and reward models reads: models as Hugging Face directories, and
the examples as ids.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_prepare import write_model
from worker import answer

from hanlin.data.conversations import CONVERSATIONS
from hanlin.data.lengths import fit_lengths, fit_tokens
from hanlin.data.prepare import encode_preferences
from hanlin.data.sources import read_files, read_preferences
from hanlin.errors import TemplateError
from hanlin.models.reward import add_score
from hanlin.models.weights import load_model, save_model
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_conversation, stop_ids
from hanlin.text.tokenizer import Tokenizer


def conversations(settings: Mapping[str, Any], format: ChatFormat, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Ids of each conversation, and which of them are learnt."""
    read, _ = read_files(settings["paths"], CONVERSATIONS, on_bad_row="skip")
    refused: list[TemplateError] = []
    encoded = []
    for conversation in read:
        try:
            encoded.append(encode_conversation(conversation, format, tokenizer, score="every"))
        except TemplateError as error:
            refused.append(error)
    fitted, _ = fit_tokens(encoded, max_length=settings["max_length"], on_long="drop")
    return [{"id": one.id, "ids": one.ids, "scored": list(map(int, one.scored))} for one in fitted]


def pairs(settings: Mapping[str, Any], format: ChatFormat, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Ids of prompt, chosen and rejected of each pair."""
    preferences, _ = read_preferences(settings["paths"], on_bad_row="skip")
    encoded = encode_preferences(preferences, format, tokenizer)
    fitted, _ = fit_lengths(encoded, max_length=settings["max_length"], on_long="drop")
    return [{"id": one.id, "prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected} for one in fitted]


def write_reward_model(source: Path, directory: Path, tokenizer: Tokenizer, format: ChatFormat) -> None:
    """The model with a fresh score in the place of its head, as transformers opens it."""
    model = load_model(source, dtype="float32", device="cpu")
    add_score(model, seed=0)
    tokenizer.save(directory, chat_template=format.jinja(), eos=format.stop)
    # transformers reads a row at its last token that is not padding, so padding must not be the stop.
    ids = {"bos_id": tokenizer.bos_id, "pad_id": tokenizer.id(format.other_stops[-1])}
    save_model(model, directory, dtype="float32", eos_ids=stop_ids(format, tokenizer), **ids)


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write `directory`/model, rows.json (the first of a seeded shuffle) and gate.json (the shortest of them)."""
    directory, is_reward = Path(settings["directory"]), settings["objective"] == "reward"
    language_model = directory / ("language-model" if is_reward else "model")
    tokenizer, format, _ = write_model(settings["model"], language_model)
    if is_reward:
        write_reward_model(language_model, directory / "model", tokenizer, format)
    rows = (pairs if is_reward else conversations)(settings, format, tokenizer)
    random.Random(0).shuffle(rows)
    taken = rows[: settings["num_rows"]]
    shortest = sorted(taken, key=lambda row: sum(len(value) for key, value in row.items() if key != "id"))
    for name, chosen in (("rows", taken), ("gate", shortest[: settings["batch_pairs"]])):
        (directory / f"{name}.json").write_text(json.dumps(chosen), encoding="utf-8")
    return {"usable": len(rows)}


if __name__ == "__main__":
    answer(measure)
