"""LoRA adapters in PEFT's directories, both ways: adapter_config.json and adapter_model.safetensors.

`peft` opens what `save_adapter` writes. A directory of somebody's adapter is opened like a model: its base is the one
that it names, and the adapter is merged into it, so that chatting, measuring, training on and exporting need to know
nothing. What PEFT can do and a merged matrix cannot say, or we do not do, is refused with its name.

Format: peft 0.21, tuners/lora/config.py and utils/save_and_load.py. rsLoRA scales by alpha / sqrt(rank)
(arXiv 2312.03732); `rank_pattern` and `alpha_pattern` give single maps their own.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hanlin.errors import CheckpointError
from hanlin.models.fetch import resolve
from hanlin.models.layers import Linear
from hanlin.models.layouts import names_to_hf
from hanlin.models.lora import TARGETS, LoraConfig, LoraLinear, adapted, merge_lora
from hanlin.models.tensorfile import StoredTensor, read_header, write_tensors
from hanlin.models.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TEXT_PREFIXES = (("language_model.model.", "model."), ("model.language_model.", "model."))  # models with vision
_PARTS = {".lora_A.weight": "down", ".lora_B.weight": "up"}
# Settings that change what an adapter computes, and the values with which they do not.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),  # adapts only what stands after these tokens
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter and no model of its own."""
    return (path / CONFIG).is_file() and not (path / "config.json").exists()


def adapter_base(path: Path) -> Path:
    """The base model of an adapter: what it names as a path from here or from its own place, a hub id or a known name.

    Raises CheckpointError where it names none, FetchError where that cannot be had.
    """
    name = _read_config(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{path / CONFIG} names no base model; write its directory or hub id into base_model_name_or_path"
        )
    beside = path / name
    return beside if not Path(name).exists() and beside.is_dir() else resolve(name)


def text_place(path: Path) -> Path:
    """Where the tokenizer of a model is: with an adapter that brings none, in its base."""
    return adapter_base(path) if is_adapter(path) and not (path / "tokenizer.json").exists() else path


def describe_adapter(path: Path) -> str:
    """One line for people: what is opened. Raises CheckpointError where it cannot be used."""
    config = _checked_config(path)
    return (
        f"{path} is a LoRA adapter (rank {config.get('r')}) on {config.get('base_model_name_or_path')}: opened as its "
        "base model with the adapter merged"
    )


def apply_adapter(model: Transformer, path: Path) -> None:
    """Put the adapter in a directory on the model, unmerged. Raises CheckpointError where it is damaged, made for
    another model, or does what we do not.
    """
    if adapted(model):
        raise CheckpointError(f"{path}: the model has adapters already; merge_lora(model) first")
    config, stored = _checked_config(path), read_header(_weights_file(path))
    ours = {theirs.removesuffix(".weight"): name for name, theirs in names_to_hf(model.config).items()}
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        theirs, part = _split(name)
        if part is None or not _is_target(ours.get(theirs, "")):
            raise CheckpointError(
                f"{tensor.path}: tensor {name} is not part of an adapter that we can open; expected lora_A and lora_B "
                f"of {', '.join(TARGETS)}"
            )
        found.setdefault(theirs, {})[part] = tensor
    if not found:
        raise CheckpointError(f"{path / WEIGHTS} holds no adapter; save it again with save_pretrained")
    for theirs, parts in found.items():
        _put(model, ours[theirs].removesuffix(".weight"), parts, scale=_scale(config, theirs, parts), file=path)


def merge_adapter(model: Transformer, path: Path) -> None:
    """Add the adapter in a directory to the model's matrices; raises CheckpointError as `apply_adapter`."""
    apply_adapter(model, path)
    merge_lora(model)


def save_adapter(model: Transformer, directory: Path, config: LoraConfig, *, base: str) -> None:
    """Write the model's adapters, fp32, as PEFT does; `base` is the name or path of the model below them.

    Lets OSError travel; each file appears whole or not at all.
    """
    names = names_to_hf(model.config)
    tensors = {}
    for name, linear in adapted(model).items():
        theirs = _PREFIX + names[f"{name}.weight"].removesuffix(".weight")
        tensors[f"{theirs}.lora_A.weight"] = linear.down.data
        tensors[f"{theirs}.lora_B.weight"] = linear.up.data
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha_value,
        "lora_dropout": 0.0,
        "use_rslora": config.rslora,
        "target_modules": list(TARGETS) if config.targets == "all-linear" else list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{WEIGHTS}.partial"
    write_tensors(partial, tensors, torch.float32)
    os.replace(partial, directory / WEIGHTS)
    partial = directory / f".{CONFIG}.partial"
    partial.write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, directory / CONFIG)


def _put(model: Transformer, place: str, parts: Mapping[str, StoredTensor], *, scale: float, file: Path) -> None:
    linear = model.get_submodule(place)
    assert isinstance(linear, Linear)
    out_width, in_width = linear.weight.shape
    if parts.keys() != {"down", "up"}:
        raise CheckpointError(f"{file / WEIGHTS}: {place} has only one of lora_A and lora_B; copy or download it again")
    rank = parts["down"].shape[0]
    shapes = {"down": (rank, in_width), "up": (out_width, rank)}
    for part, shape in shapes.items():
        if parts[part].shape != shape:
            raise CheckpointError(
                f"{file / WEIGHTS}: tensor {parts[part].name} has shape {list(parts[part].shape)}; expected "
                f"{list(shape)}: the adapter was made for another model"
            )
    made = {part: torch.empty(shape, device=linear.weight.device) for part, shape in shapes.items()}
    for part, tensor in made.items():
        parts[part].copy_to(tensor)
    path, _, attribute = place.rpartition(".")
    adapter = LoraLinear(linear, made["down"], made["up"], scale=scale)
    linear.requires_grad_(False)
    setattr(model.get_submodule(path), attribute, adapter)


def _is_target(place: str) -> bool:
    return any(place.endswith(f".{target}.weight") for target in TARGETS.values())


def _split(name: str) -> tuple[str, str | None]:
    """Hugging Face's name of the map, and which half of its adapter a tensor is; None for another thing."""
    plain = name.removeprefix(_PREFIX)
    for old, new in _TEXT_PREFIXES:
        if plain.startswith(old):
            plain = new + plain.removeprefix(old)
    for ending, part in _PARTS.items():
        if plain.endswith(ending):
            return plain.removesuffix(ending), part
    return plain, None


def _scale(config: Mapping[str, Any], name: str, parts: Mapping[str, StoredTensor]) -> float:
    """alpha / rank, or by rank's root; a map may have an alpha and a rank of its own."""
    rank, alpha = _pattern(config, "rank_pattern", name, "r"), _pattern(config, "alpha_pattern", name, "lora_alpha")
    if "down" in parts and parts["down"].shape[:1] != (rank,):
        where = parts["down"]
        raise CheckpointError(f"{where.path}: tensor {where.name} has rank {where.shape[0]}; {CONFIG} says {rank}")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _pattern(config: Mapping[str, Any], patterns: str, name: str, otherwise: str) -> Any:
    """As peft.utils.other.get_pattern_key: the first pattern that ends the name after a dot."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return config[otherwise]


def _checked_config(path: Path) -> dict[str, Any]:
    config = _read_config(path)
    for key, harmless in _HARMLESS.items():
        if key in config and config[key] not in harmless:
            raise CheckpointError(
                f'{path / CONFIG}: "{key}" is {json.dumps(config[key])}, which we do not open; where peft can '
                "merge it: PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(NEW)"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f'{path / CONFIG}: "init_lora_weights" is "{start}", which changes the base model too; merge it with peft'
        )
    for key in ("r", "lora_alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise CheckpointError(f'{path / CONFIG}: "{key}" is {config.get(key)!r}; expected a number above 0')
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read ({error}); copy or download it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / CONFIG}: expected a JSON object, found {type(config).__name__}")
    return config


def _weights_file(path: Path) -> Path:
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    if (path / "adapter_model.bin").exists():
        raise CheckpointError(
            f"{path} holds a pickled adapter only, which can run code when opened; only safetensors are read. Convert "
            "it with peft: PeftModel.from_pretrained(base, DIR).save_pretrained(NEW)"
        )
    raise CheckpointError(f"{path / WEIGHTS} is missing; download the adapter again")
