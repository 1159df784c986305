"""What a recipe names, opened: tokenizer, chat format, data and objective; and the weights, ready to be trained."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hanlin.data.loader import Order
from hanlin.data.prepare import PreparedData
from hanlin.errors import TemplateError
from hanlin.models.adapters import text_place
from hanlin.models.fetch import cache_directory, resolve
from hanlin.models.parts import divide, fill
from hanlin.models.transformer import Transformer
from hanlin.models.untrained import initialise_rows, untrained_in
from hanlin.models.weights import Checkpoint, fill_model, open_language_model, outline, pick_device
from hanlin.text.audit import audit, choose_format, side_by_side
from hanlin.text.chat import ChatFormat, named_format
from hanlin.text.encode import check_vocabulary, control_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.allocator import release_memory
from hanlin.training.checkpoint import model_in
from hanlin.training.division import UNDIVIDED, Division
from hanlin.training.learning import settle_learning
from hanlin.training.objective import Objective, objective_of
from hanlin.training.recipe import ChatSection, Recipe
from hanlin.training.trackers import check_trackers
from hanlin.training.work import count_steps

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Material:
    """What a recipe names, opened, all but the weights: enough for a dry run."""

    recipe: Recipe
    source: Path
    tokenizer: Tokenizer
    format: ChatFormat
    data: PreparedData
    objective: Objective[Any]

    @property
    def order(self) -> Order:
        config = self.recipe.training
        return self.objective.arrange(
            self.data,
            batch=config.batch_pairs,
            epochs=config.epochs,
            steps=config.steps,
            seed=config.seed,
            shuffle=self.recipe.data.shuffle,
        )

    @property
    def num_steps(self) -> int:
        return count_steps(self.order, self.data.train, self.recipe.training, noun=self.objective.noun)


def open_material(recipe: Recipe, *, on_note: Callable[[str], None] = _log.warning) -> Material:
    """Resolve the model, open its tokenizer, settle the chat format and prepare the data."""
    check_trackers(recipe.track)
    source = model_in(resolve(recipe.model.path))
    tokenizer = Tokenizer.open(text_place(source))
    format = settle_format(tokenizer, recipe.chat, on_note=on_note)
    cache = cache_directory() / "tokens" if recipe.data.cache else None
    objective = objective_of(recipe.objective)
    system = recipe.chat.system
    data = objective.prepare(recipe.data, format, tokenizer, system=system, cache=cache, on_note=on_note)
    return Material(recipe, source, tokenizer, format, data, objective)


def settle_format(tokenizer: Tokenizer, chat: ChatSection, *, on_note: Callable[[str], None]) -> ChatFormat:
    """The format to train with; a disagreement with the checkpoint's own template is an error unless the recipe takes a
    side.
    """
    format = named_format(chat.format) if chat.format else choose_format(tokenizer, date=chat.date)
    if chat.date is not None:
        format = replace(format, date=chat.date)
    result = audit(format, tokenizer, date=chat.date)
    if result.missing_template:
        on_note(f"the checkpoint has no chat template: using the {format.name} format")
    elif not result.clean and chat.follow is None:
        raise TemplateError(
            f"the checkpoint's chat template and the {format.name} format "
            f"disagree:\n{side_by_side(result.differences[0])}\n"
            'Say chat.follow = "format" to train with ours (it is saved as the template), or choose another chat.format'
        )
    elif not result.clean and chat.follow == "template":
        raise TemplateError(
            f'chat.follow = "template" needs a format that renders as the checkpoint\'s template does; {format.name} '
            f"does not, and no other "
            "known one does: choose chat.format, or write the checkpoint's template as a format"
        )
    return format


def load_training_model(
    material: Material, *, on_note: Callable[[str], None], division: Division = UNDIVIDED
) -> Transformer:
    """Weights, or this rank's of them, in the recipe's dtype on its device, with fresh adapters where it has [lora];
    matmuls in the recipe's compute dtype.
    """
    checkpoint = open_language_model(material.source)
    model = outline_training_model(material, checkpoint, division, on_note=on_note)
    division.spread(model, pick_device(material.recipe.training.device))
    read_training_model(model, material, checkpoint, division, on_note=on_note)
    return model


def outline_training_model(
    material: Material, checkpoint: Checkpoint, division: Division, *, on_note: Callable[[str], None]
) -> Transformer:
    """The model that will learn, or this rank's part of every layer, before it is spread over the ranks: what is read
    as it is stored has no memory yet. There already are fresh adapters, a fresh score, layers in four bits, and all of
    a checkpoint that has an adapter merged into it.
    """
    recipe, cpu = material.recipe, torch.device("cpu")
    device = pick_device(recipe.training.device)
    model = outline(checkpoint, dtype=recipe.model.dtype, on_note=on_note)
    check_vocabulary(material.tokenizer, model.config.vocab_size)
    model.compute_dtype = torch.float32 if recipe.model.compute == "float32" else torch.bfloat16
    if checkpoint.adapter is not None:
        fill_model(model, checkpoint, cpu if division.world.sharded or recipe.model.quantization else device)
    divide(model, division.part)
    read = partial(_read_below, model, checkpoint, cpu)
    settle_learning(model, recipe, device, read=read, part=division.part)
    if material.objective.adopt is not None:
        material.objective.adopt(model, recipe.training.seed, device)
    return model if checkpoint.adapter is None or division.world.sharded else model.to(device)


def _read_below(model: Transformer, checkpoint: Checkpoint, device: torch.device, below: str) -> None:
    release_memory()  # the layer before was packed, and its matrices left holes that this one's do not fit into
    fill(model, checkpoint.tensors, device, below=below)


def read_training_model(
    model: Transformer,
    material: Material,
    checkpoint: Checkpoint,
    division: Division,
    *,
    on_note: Callable[[str], None],
) -> None:
    """Read what this rank keeps of a model that is spread over the ranks, and nothing else."""
    fill(model, checkpoint.tensors, pick_device(material.recipe.training.device), read=division.read)
    settle_rows(model, material, division, on_note=on_note)


def settle_rows(model: Transformer, material: Material, division: Division, *, on_note: Callable[[str], None]) -> None:
    """Give untrained rows of the chat format's control pieces a start, unless the recipe keeps them; say so."""
    control = control_ids(material.format, material.tokenizer)
    untrained = untrained_in(model, list(control.values()), division.rows)
    for matrix, ids in untrained.items():
        pieces = ", ".join(piece for piece, id in control.items() if id in ids)
        keep = material.recipe.model.untrained_rows == "keep"
        said = "kept as they are" if keep else "now the mean of the trained rows"
        on_note(f"{matrix} has untrained rows for {pieces}: {said} (model.untrained_rows)")
    if material.recipe.model.untrained_rows == "mean":
        initialise_rows(model, untrained, division.edited)
