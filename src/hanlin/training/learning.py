"""What of a loaded model learns: everything, its upper layers, or adapters, perhaps on top of four bits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hanlin.errors import ConfigError
from hanlin.models.backends import choose_backend
from hanlin.models.config import ModelConfig
from hanlin.models.lora import add_lora
from hanlin.models.nf4 import check_nf4, pack_layers
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer
from hanlin.training.optim import check_optimizer
from hanlin.training.recipe import Recipe
from hanlin.training.supported import check_supported


def check_runs_here(recipe: Recipe, device: torch.device, *, ranks: int = 1) -> None:
    """Raise ConfigError for what cannot work on this device or with so many processes, or needs a package that is
    missing: before any weight is read.
    """
    check_optimizer(recipe.training.optimizer, device, narrow=recipe.model.dtype == "bfloat16" and recipe.lora is None)
    check_supported(recipe.setting(device.type))
    if recipe.model.quantization == "nf4":
        check_nf4()
    if recipe.training.step_in_backward and ranks > 1:
        raise ConfigError(
            "training.step_in_backward updates weights before gradients could be summed over several processes: leave "
            "it out, or train with one process"
        )


def check_model(recipe: Recipe, config: ModelConfig, device: torch.device) -> None:
    """Raise ConfigError for what this model cannot do on this device: before any of its weights is read."""
    check_layers(recipe, config)
    compute = torch.float32 if recipe.model.compute == "float32" else torch.bfloat16
    choose_backend(config, device, dtype=compute, backend=recipe.training.attention)


def beyond_context(examples: Sequence[Any], config: ModelConfig) -> str:
    """What is wrong with examples that are longer than the context that the model was trained with, or ""."""
    longest = max(example.num_positions for example in examples)
    if longest <= config.max_length:
        return ""
    return (
        f"the longest example takes {longest:,} positions, and the model was made for {config.max_length:,}, which "
        f"nobody has tried beyond: set data.max_length = {config.max_length}, and longer ones are dropped or cut"
    )


def check_layers(recipe: Recipe, config: ModelConfig) -> None:
    """Raise ConfigError where the recipe freezes more layers than the model has."""
    if recipe.training.frozen_layers > config.num_layers:
        raise ConfigError(
            f"training.frozen_layers = {recipe.training.frozen_layers}, and the model has {config.num_layers}: freeze "
            f"{config.num_layers - 1} or fewer"
        )


def settle_learning(
    model: Transformer,
    recipe: Recipe,
    device: torch.device,
    *,
    read: Callable[[str], None],
    part: Part = WHOLE,
) -> None:
    """Let only that learn of a model, or of a part of it, which the recipe says. The model may be without memory: only
    of layers that are packed `read` fills what begins with a name, on the CPU, one layer at a time. Adapters are made
    on `device`.
    """
    if recipe.model.quantization == "nf4":
        pack_layers(model, device, read)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, seed=recipe.training.seed, part=part, device=device)
    freeze_layers(model, recipe.training.frozen_layers)


def freeze_layers(model: Transformer, number: int) -> None:
    """The first layers and the embedding below them learn no more; where the head is tied it is that embedding."""
    if number == 0:
        return
    model.embed.requires_grad_(False)
    for block in model.blocks[:number]:
        block.requires_grad_(False)
