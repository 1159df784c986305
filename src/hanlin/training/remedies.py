"""Whether a run fits the memory that cards come with, and which single change would make it fit.

Changes are tried in the order of what they cost the result: first those that cost only time, then those that change the
numbers a little, then those that train something else. Each is judged by the same count as the run itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from hanlin.models.config import ModelConfig
from hanlin.training.fit import USABLE
from hanlin.training.footprint import Footprint, footprint
from hanlin.training.optim import SHARDABLE
from hanlin.training.recipe import Recipe
from hanlin.training.workload import Workload

CARDS = (16, 24, 48, 80, 141)  # GB: T4 or a laptop, 4090, L40S, A100 or H100, H200
_RANKS = (2, 4, 8)
_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a run: what a user would type, the run that it gives, and over how many devices."""

    words: str
    recipe: Recipe
    load: Workload
    ranks: int = 1


def verdicts(config: ModelConfig, recipe: Recipe, load: Workload, *, device: str, ranks: int = 1) -> Iterator[str]:
    """For each size of memory: whether the run fits, and else the first change with which it would."""
    for card in CARDS:
        capacity = USABLE * card * _GIGA
        found = footprint(config, recipe, load, device=device, capacity=capacity, ranks=ranks)
        if found.peak <= capacity:
            yield f"{card} GB: fits, {_peak(found)}{_way(found)}"
            continue
        for change in changes(recipe, load, device=device, ranks=ranks):
            better = footprint(config, change.recipe, change.load, device=device, capacity=capacity, ranks=change.ranks)
            if better.peak <= capacity:
                yield (
                    f"{card} GB: does not fit ({_peak(found)}); would with {change.words}, {_peak(better)}"
                    f"{_way(better)}"
                )
                break
        else:
            yield f"{card} GB: does not fit ({_peak(found)}), and no single change makes it"


def changes(recipe: Recipe, load: Workload, *, device: str, ranks: int = 1) -> Iterator[Change]:
    """Every single change that is possible, the least harmful first."""
    for words, settings, lighter in _settings(recipe, load, device):
        tree = recipe.model_dump(exclude_none=True)
        for key, value in settings.items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        try:
            changed = Recipe.model_validate(tree)
        except ValidationError:
            continue  # does not go together with the rest of this recipe
        if ranks > 1 and changed.training.optimizer not in SHARDABLE:
            continue
        yield Change(words=words, recipe=changed, load=lighter, ranks=ranks)
    if device == "cuda" and recipe.parallel.tensor == 1 and recipe.training.optimizer in SHARDABLE:
        for number in (number for number in _RANKS if number > ranks):
            yield Change(words=f"{number} such devices (FSDP2)", recipe=recipe, load=load, ranks=number)


def _settings(recipe: Recipe, load: Workload, device: str) -> Iterator[tuple[str, Mapping[str, Any], Workload]]:
    """What to type, the settings, and what is left of the workload."""
    model, training, lora = recipe.model, recipe.training, recipe.lora
    budget = training.tokens_per_pass // 2
    while budget >= 256 and load.tokens > load.longest:
        lighter = _lighter(load, max(budget, load.longest))
        yield _typed({"training.tokens_per_pass": budget}, lighter)
        if budget < load.longest:
            break
        budget //= 2
    if training.recomputed_layers != "auto":
        yield _typed({"training.recomputed_layers": "auto"}, load)
    if training.head == "fast":
        yield _typed({"training.head": "auto"}, load)
    if lora is None:
        if not training.step_in_backward and load.passes == 1:
            yield _typed({"training.step_in_backward": True, "training.clip": 0}, load)
        if model.dtype == "float32":
            yield _typed({"model.dtype": "bfloat16", "training.optimizer": "adamw_bf16"}, load)
        if device == "cuda":
            yield _typed({"training.optimizer": "paged_adamw_8bit"}, load)
        low = {"lora.rank": 16, "model.dtype": "bfloat16", "training.optimizer": "adamw", "training.frozen_layers": 0}
        yield _typed(low, load, shown="lora.rank=16 model.dtype=bfloat16 training.optimizer=adamw")
        shown = "lora.rank=16 model.dtype=bfloat16 model.quantization=nf4 training.optimizer=adamw"
        yield _typed(low | {"model.quantization": "nf4"}, load, shown=shown)
    elif model.dtype == "float32":
        yield _typed({"model.dtype": "bfloat16"}, load)
    if lora is not None and model.quantization is None:
        yield _typed({"model.quantization": "nf4", "model.dtype": "bfloat16"}, load)
    for part in (2, 4):
        length = recipe.data.max_length // part
        shorter = replace(load, longest=load.longest // part)
        yield _typed({"data.max_length": length}, _lighter(shorter, max(shorter.longest, training.tokens_per_pass)))


def _typed(settings: Mapping[str, Any], load: Workload, *, shown: str = "") -> tuple[str, Mapping[str, Any], Workload]:
    pairs = shown.split() if shown else [f"{key}={str(value).lower()}" for key, value in settings.items()]
    return " ".join(f"--set {pair}" for pair in pairs), settings, load


def _lighter(load: Workload, tokens: int) -> Workload:
    """The workload with passes of at most so many tokens."""
    tokens = min(tokens, load.tokens)
    return replace(
        load,
        tokens=tokens,
        predictions=min(load.predictions, round(load.predictions * tokens / load.tokens)),
        passes=max(load.passes, -(-load.tokens // tokens)),
    )


def _peak(found: Footprint) -> str:
    return f"{found.peak / _GIGA:.1f} GB"


def _way(found: Footprint) -> str:
    """How the steps are made to fit."""
    lean = ["a lean head"] if found.head_mode == "lean" else []
    twice = [f"{found.recomputed_layers} layers computed twice"] if found.recomputed_layers else []
    return f" ({' and '.join([*lean, *twice])})" if lean or twice else ""
