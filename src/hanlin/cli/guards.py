"""The guard model that a curation recipe names, as a callable: loaded here, or asked at an address."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hanlin.curation.guards import Guard, Piece
    from hanlin.curation.recipe import CurationRecipe
    from hanlin.models.transformer import Transformer
    from hanlin.text.tokenizer import Tokenizer


def open_guard(recipe: "CurationRecipe") -> "Guard | None":
    """The guard of the recipe; None where it names none. Raises ConfigError, and what loading a model raises."""
    from hanlin.curation.chat_client import ChatClient
    from hanlin.curation.guards import chat_judge, qwen3guard, shieldgemma

    section = recipe.guard
    if not section.kind:
        return None
    if not section.model:
        raise ConfigError(f"guard.model is missing; name the model of guard.kind = {section.kind!r}")
    if section.kind == "shieldgemma":
        return shieldgemma(open_shieldgemma(section.model), policies=section.policies, threshold=section.threshold)
    if not section.address:
        raise ConfigError("guard.address is missing; expected an OpenAI-compatible one, http://localhost:8000/v1")
    output = Path(recipe.output.directory)
    output.mkdir(parents=True, exist_ok=True)
    client = ChatClient(
        section.address,
        section.model,
        key=os.environ.get(section.key_variable, ""),
        cache=output / "guard-cache.jsonl",
    )
    if section.kind == "judge":
        return chat_judge(client.ask)
    return qwen3guard(client.ask, controversial=section.controversial)


def open_shieldgemma(name: str) -> "Callable[[Sequence[Piece]], float]":
    """The probability of "Yes" against "No" under a Gemma 2. Raises CheckpointError."""
    from hanlin.api import load

    model, tokenizer = load(name, device="auto")
    yes, no = (_only_id(tokenizer, word, name) for word in ("Yes", "No"))
    if tokenizer.bos_id is None:
        raise CheckpointError(f"{name} has no BOS token, which ShieldGemma's prompt begins with")
    return lambda pieces: yes_probability(model, encode(tokenizer, pieces), yes, no)


def _only_id(tokenizer: "Tokenizer", word: str, name: str) -> int:
    ids = tokenizer.encode(word)
    if len(ids) != 1:
        raise CheckpointError(f"{name} has no single token {word!r}; a ShieldGemma model has")
    return ids[0]


def encode(tokenizer: "Tokenizer", pieces: "Sequence[Piece]") -> list[int]:
    """BOS, then control pieces by their ids and text as text. Raises CheckpointError."""
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for piece in pieces:
        if not piece.control:
            ids += tokenizer.encode(piece.text)
        elif (found := tokenizer.id(piece.text)) is not None:
            ids.append(found)
        else:
            raise CheckpointError(f"the tokenizer has no {piece.text}; guard.model should be a ShieldGemma (Gemma 2)")
    return ids


def yes_probability(model: "Transformer", ids: Sequence[int], yes: int, no: int) -> float:
    """The softmax of the two logits after the last id. A prompt beyond the model's length keeps its start and end."""
    import torch

    from hanlin.models.attention import SegmentAttention
    from hanlin.types import Segment

    longest = model.config.max_length
    if len(ids) > longest:
        ids = [*ids[: longest // 2], *ids[len(ids) - (longest - longest // 2) :]]
    with torch.inference_mode():
        tokens_T = torch.tensor(ids, device=model.device)
        positions_T = torch.arange(len(ids), device=model.device)
        attend = SegmentAttention(model.config, [Segment(0, len(ids))], model.device)
        logits_V = model.head(model.hidden(tokens_T, positions_T, attend)[-1:])[0]
        return float(torch.sigmoid(logits_V[yes] - logits_V[no]))
