"""Makes ready what both sides of the ORPO benchmark read: the model as a Hugging Face directory, the pairs as ids and
text.

Ids are Hanlin's. A pair is left out where the tokenizer, given the text in one piece as TRL gives it, splits it another
way (an answer that begins with a line break merges with its header): both sides must train on the same tokens.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from worker import answer

from hanlin.data.lengths import fit_lengths
from hanlin.data.prepare import encode_preferences
from hanlin.data.sources import read_preferences
from hanlin.models.fetch import resolve
from hanlin.models.weights import load_model, save_model
from hanlin.text.audit import choose_format
from hanlin.text.encode import stop_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import EncodedPair


def write_pairs(path: Path, pairs: Sequence[EncodedPair], tokenizer: Tokenizer) -> None:
    """Ids and text of prompt, chosen and rejected of each pair, as JSON."""
    rows = []
    for pair in pairs:
        ids = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        texts = {f"{name}_text": tokenizer.decode(value, keep_control=True) for name, value in ids.items()}
        rows.append({"id": pair.id, **ids, **texts})
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def splits_alike(pair: EncodedPair, tokenizer: Tokenizer, theirs: Any) -> bool:
    """Whether transformers' tokenizer gives the pair's ids for its prompt and for each prompt and answer in one."""
    prompt, *rows = (
        theirs(tokenizer.decode(ids, keep_control=True), add_special_tokens=False)["input_ids"]
        for ids in (pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected)
    )
    return prompt == list(pair.prompt) and rows == [list(pair.prompt + pair.chosen), list(pair.prompt + pair.rejected)]


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write `directory`/model, `directory`/pairs.json (the first of a seeded shuffle) and gate.json (the shortest)."""
    directory = Path(settings["directory"])
    source = resolve(settings["model"])
    tokenizer = Tokenizer.open(source)
    format = choose_format(tokenizer)
    tokenizer.save(directory / "model", chat_template=format.jinja(), eos=format.stop)
    model = load_model(source, dtype="float32", device="cpu")
    stops = stop_ids(format, tokenizer)
    save_model(model, directory / "model", dtype="float32", bos_id=tokenizer.bos_id, eos_ids=stops)

    preferences, _ = read_preferences(settings["paths"], on_bad_row="skip")
    encoded = encode_preferences(preferences, format, tokenizer)
    fitted, report = fit_lengths(encoded, max_length=settings["max_length"], on_long="drop")
    theirs = AutoTokenizer.from_pretrained(directory / "model")
    alike = [pair for pair in fitted if splits_alike(pair, tokenizer, theirs)]
    random.Random(0).shuffle(alike)
    taken = alike[: settings["num_pairs"]]
    write_pairs(directory / "pairs.json", taken, tokenizer)
    shortest = sorted(alike, key=lambda pair: pair.num_tokens)[: settings["batch_pairs"]]
    write_pairs(directory / "gate.json", shortest, tokenizer)
    return {
        "read": report.pairs,
        "fitting": len(fitted),
        "alike": len(alike),
        "tokens": [pair.num_logical_tokens for pair in taken],
        "stream_tokens": sum(pair.num_tokens for pair in taken),
    }


if __name__ == "__main__":
    answer(measure)
