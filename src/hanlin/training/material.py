"""What a recipe names, opened: tokenizer, chat format, data and objective; and the weights, ready to be trained."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hanlin.data.loader import Order
from hanlin.data.prepare import PreparedData
from hanlin.errors import TemplateError
from hanlin.models.adapters import text_place
from hanlin.models.fetch import cache_directory, resolve
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer
from hanlin.models.untrained import initialise_rows, untrained_in
from hanlin.models.weights import load_model, pick_device
from hanlin.text.audit import audit, choose_format, side_by_side
from hanlin.text.chat import ChatFormat, named_format
from hanlin.text.encode import check_vocabulary, control_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.checkpoint import model_in
from hanlin.training.learning import place_to_load, settle_learning
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
    material: Material,
    *,
    on_note: Callable[[str], None],
    device: torch.device | None = None,
    part: Part = WHOLE,
) -> Transformer:
    """Weights, or a part of every layer's, in the recipe's dtype on its device (or another), with fresh adapters where
    it has [lora]; matmuls in the recipe's compute dtype.
    """
    section, device = material.recipe.model, device or pick_device(material.recipe.training.device)
    place = place_to_load(material.recipe, device)
    model = load_model(material.source, dtype=section.dtype, device=place, on_note=on_note, part=part)
    check_vocabulary(material.tokenizer, model.config.vocab_size)
    model.compute_dtype = torch.float32 if section.compute == "float32" else torch.bfloat16
    settle_rows(model, material, on_note=on_note)
    settle_learning(model, material.recipe, device, part)
    if material.objective.adopt is not None:
        material.objective.adopt(model, material.recipe.training.seed)
    return model


def settle_rows(model: Transformer, material: Material, *, on_note: Callable[[str], None]) -> None:
    """Give untrained rows of the chat format's control pieces a start, unless the recipe keeps them; say so."""
    control = control_ids(material.format, material.tokenizer)
    untrained = untrained_in(model, list(control.values()))
    for matrix, ids in untrained.items():
        pieces = ", ".join(piece for piece, id in control.items() if id in ids)
        keep = material.recipe.model.untrained_rows == "keep"
        said = "kept as they are" if keep else "now the mean of the trained rows"
        on_note(f"{matrix} has untrained rows for {pieces}: {said} (model.untrained_rows)")
    if material.recipe.model.untrained_rows == "mean":
        initialise_rows(model, untrained)
