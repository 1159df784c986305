"""Opens model directories and GGUF files as a `Transformer`, and writes directories that transformers and vLLM open.

Safetensors only: a pickle checkpoint can run code, so it is refused. The model is built without memory, checked
against the files' headers, and only then filled tensor by tensor; nothing is ever held twice. Saving writes under
temporary names, flushes, and renames, so that a killed run leaves either the old files or the new ones.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanlin.errors import CheckpointError
from hanlin.models.adapters import adapter_base, describe_adapter, is_adapter, merge_adapter
from hanlin.models.config import ModelConfig
from hanlin.models.devices import DTYPES, parse_dtype, pick_device
from hanlin.models.families import SCORE, as_classifier, config_from_hf, config_notes, config_to_hf, without_head
from hanlin.models.gguf import config_from_gguf, gguf_tensors, read_gguf_header
from hanlin.models.layouts import names_to_gguf, names_to_hf
from hanlin.models.lora import adapted
from hanlin.models.nf4 import packed_matrices
from hanlin.models.parts import Stored, fill
from hanlin.models.tensorfile import StoredTensor, read_header, write_tensors
from hanlin.models.transformer import Transformer

_SHARD_BYTES = 5 * 10**9
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_VISION = ("vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector.")
# Gemma 3 with vision: older and newer names of the text model inside it, and the plain ones.
_PREFIXES = (("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.", ""))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a directory or file holds, from its headers alone. `tensors` has our names; `notes` are for the user.

    `score` is the scalar head that a reward model has instead of logits; `adapter` will be merged into the weights.
    """

    path: Path
    config: ModelConfig
    dtype: torch.dtype
    tensors: Mapping[str, Stored]
    notes: tuple[str, ...]
    score: Stored | None = None
    adapter: Path | None = None


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    on_note: Callable[[str], None] = _log.warning,
) -> Transformer:
    """The model in a Hugging Face directory or a GGUF file, in evaluation mode.

    `dtype` is "float32", "bfloat16", "float16", a torch dtype, or "auto": as stored (bfloat16 for quantized GGUF).
    `on_note` is told what the user should know. Raises CheckpointError when anything is missing, damaged, unsupported
    or of the wrong shape, ConfigError for a device that is not there.
    """
    checkpoint = open_language_model(path)
    return fill_model(outline(checkpoint, dtype=dtype, on_note=on_note), checkpoint, pick_device(device))


def outline(
    checkpoint: Checkpoint, *, dtype: torch.dtype | str, on_note: Callable[[str], None] = _log.warning
) -> Transformer:
    """The decoder of an opened checkpoint, in evaluation mode, whose parameters have shapes and dtypes and no memory
    (device "meta") until they are filled.
    """
    for note in checkpoint.notes:
        on_note(note)
    return _empty(checkpoint.config).to(_compute_dtype(checkpoint, dtype, on_note)).eval()


@torch.no_grad()
def fill_model(model: Transformer, checkpoint: Checkpoint, device: torch.device) -> Transformer:
    """The outlined model read to a device, an adapter merged; a score is left to `reward.load_reward_model`."""
    fill(model, checkpoint.tensors, device)
    if checkpoint.adapter is not None:
        merge_adapter(model, checkpoint.adapter)
    return model


def _compute_dtype(checkpoint: Checkpoint, dtype: torch.dtype | str, on_note: Callable[[str], None]) -> torch.dtype:
    overflows = f"float16 overflows in {checkpoint.config.family}, whose activations pass 65504"
    if dtype != "auto":
        wanted = parse_dtype(dtype)
        if wanted == torch.float16 and checkpoint.config.needs_wide_exponent:
            raise CheckpointError(f"{overflows}: fp16 files are read; compute in bfloat16 or float32")
        return wanted
    if checkpoint.dtype == torch.float16 and checkpoint.config.needs_wide_exponent:
        on_note(f"{overflows}: the weights are read as bfloat16 (dtype float32 keeps every bit)")
        return torch.bfloat16
    return checkpoint.dtype


def _empty(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters, a tied head counted once; takes no memory."""
    return sum(parameter.numel() for parameter in _empty(config).parameters())


def open_language_model(path: Path | str) -> Checkpoint:
    """`open_checkpoint`; raises CheckpointError for a reward model."""
    checkpoint = open_checkpoint(path)
    if checkpoint.score is not None:
        raise CheckpointError(f"{path} is a reward model: it scores answers and writes none; name a language model")
    return checkpoint


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read the config and the headers under `path` and check every tensor's name and shape; reads no weights."""
    path = Path(path)
    if is_adapter(path):
        opened, note = open_checkpoint(adapter_base(path)), describe_adapter(path)
        return replace(opened, adapter=path, notes=(*opened.notes, note))
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{path}: expected a model directory or a .gguf file")
        return _open_gguf(path)
    if path.is_dir():
        return _open_directory(path)
    raise CheckpointError(f"{path} does not exist; expected a model directory or a .gguf file")


def _open_gguf(path: Path) -> Checkpoint:
    header = read_gguf_header(path)
    config = config_from_gguf(header)
    tensors = _matched(path, config, names_to_gguf(config), gguf_tensors(header, config))
    return Checkpoint(path, config, header.dtype, tensors, tuple(config_notes(config)))


def _open_directory(path: Path) -> Checkpoint:
    config = config_from_hf(_read_json(path / "config.json", _what_else(path)), source=str(path / "config.json"))
    notes = config_notes(config)
    stored = _plain_names(_read_headers(path))
    score = stored.pop(SCORE, None)
    config = config if score is None else without_head(config)
    if config.tied_head and "lm_head.weight" in stored:
        head, embedding = stored.pop("lm_head.weight"), stored.get("model.embed_tokens.weight")
        if embedding is not None and head.shape != embedding.shape:
            raise CheckpointError(
                f"{path}: tensor lm_head.weight has shape {list(head.shape)}; expected {list(embedding.shape)}, the "
                "embedding's, because tie_word_embeddings is true"
            )
        if embedding is not None and not head.equals(embedding):
            notes.append(
                f"{path}: lm_head.weight differs from the embedding, but tie_word_embeddings is true: the embedding is "
                'used. If the head was trained apart, write "tie_word_embeddings": false into config.json.'
            )
    names = names_to_hf(config)
    tensors = _matched(path, config, names, stored)
    dtype = torch.float32 if (kind := stored[names["embed.weight"]].dtype) == torch.float64 else kind
    return Checkpoint(path, config, dtype, tensors, tuple(notes), score)


def _read_json(path: Path, if_missing: str = "") -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing{if_missing}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _what_else(path: Path) -> str:
    """The end of "config.json is missing", by what the directory holds instead."""
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files:
        return f"; to open a GGUF file name it: {path / files[0]}"
    return "; expected a Hugging Face model directory"


def _read_headers(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory: of model.safetensors, or of the shards its index names."""
    if (path / _WEIGHTS).exists():
        return read_header(path / _WEIGHTS)
    if not (path / _INDEX).exists():
        if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
            raise CheckpointError(
                f"{path} holds pickled weights only, which can run code when opened; only safetensors are read. "
                "Convert them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) in transformers"
            )
        raise CheckpointError(f"{path} has neither {_WEIGHTS} nor {_INDEX}; download the model again")
    weight_map = _read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path / _INDEX}: weight_map is not an object of file names; download it again")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError(f"{path / shard} is missing, which {_INDEX} names; download the model again")
        in_shard = read_header(path / shard)
        tensors |= {name: tensor for name, tensor in in_shard.items() if weight_map.get(name, shard) == shard}
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise CheckpointError(
            f"{path / weight_map[absent[0]]}: tensor {absent[0]} is missing, which {_INDEX} places there"
        )
    return tensors


def _plain_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as in a plain text model: no vision parts, no prefixes of a model with vision, no old buffers."""
    plain: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if name.startswith(_VISION) or name.endswith("rotary_emb.inv_freq"):
            continue
        short = next((new + name.removeprefix(old) for old, new in _PREFIXES if name.startswith(old)), name)
        if short in plain:
            raise CheckpointError(f"{tensor.path}: tensors {plain[short].name} and {name} are the same one twice")
        plain[short] = tensor
    return plain


def _matched(
    path: Path, config: ModelConfig, names: Mapping[str, str], stored: Mapping[str, Stored]
) -> dict[str, Stored]:
    """The stored tensors by our names. Raises CheckpointError naming what is missing, superfluous or misshapen."""
    expected = {name: tuple(parameter.shape) for name, parameter in _empty(config).named_parameters()}
    missing = [names[ours] for ours in expected if names[ours] not in stored]
    if missing:
        ours = next(ours for ours in expected if names[ours] == missing[0])
        raise CheckpointError(
            f"{path}: tensor {missing[0]} is missing; expected shape {list(expected[ours])}{_and_more(missing)}"
        )
    for ours, shape in expected.items():
        found = stored[names[ours]].shape
        if found != shape:
            raise CheckpointError(f"{path}: tensor {names[ours]} has shape {list(found)}; expected {list(shape)}")
    extra = sorted(set(stored) - set(names.values()))
    if extra:
        raise CheckpointError(
            f"{path}: tensor {extra[0]} of shape {list(stored[extra[0]].shape)} is not part of a {config.family} "
            f"model; expected none{_and_more(extra)}"
        )
    return {ours: stored[names[ours]] for ours in expected}


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def save_model(
    model: Transformer,
    directory: Path | str,
    *,
    dtype: torch.dtype | str = "bfloat16",
    bos_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    pad_id: int | None = None,
) -> None:
    """Write config.json and model.safetensors (shards and an index above 5 GB) into `directory`; see `save_tensors`.

    Adapters are merged into what is written, four bits are unpacked; the model stays as it is.
    """
    linears, packed = adapted(model), packed_matrices(model)
    tensors = {name: one.data for name, one in model.named_parameters() if not name.endswith((".down", ".up"))}
    tensors |= {name: torch.empty(matrix.shape, device="meta") for name, matrix in packed.items()}
    merged = {name: packing.matrix for name, packing in packed.items()}
    merged |= {f"{name}.weight": linear.merged for name, linear in linears.items()}
    save_tensors(
        model.config, tensors, directory, dtype=dtype, bos_id=bos_id, eos_ids=eos_ids, pad_id=pad_id, merged=merged
    )


def save_tensors(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    directory: Path | str,
    *,
    dtype: torch.dtype | str = "bfloat16",
    bos_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    pad_id: int | None = None,
    merged: Mapping[str, Callable[[], Tensor]] | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write tensors (names of `named_parameters`) as a Hugging Face directory; a tied head is never written.

    `merged` makes what is written in place of a tensor of the same name and shape: for one shard at a time, on the CPU.
    Each file appears whole or not at all, and what an earlier save left over is removed. Raises CheckpointError when
    the disk is full or the directory cannot be written.
    """
    directory, kind = Path(directory), parse_dtype(dtype)
    is_reward = SCORE in tensors
    names = names_to_hf(config) | ({SCORE: SCORE} if is_reward else {})
    if set(tensors) != set(names):
        odd = sorted(set(tensors) ^ set(names))
        raise CheckpointError(f"cannot save: {odd[0]} is missing or not part of the model{_and_more(odd)}")
    renamed = {names[ours]: tensors[ours] for ours in names}
    made = {names[ours]: make for ours, make in (merged or {}).items()}
    shards = _shards(renamed, kind, shard_bytes)
    dtype_name = next(name for name, value in DTYPES.items() if value == kind)
    described = config_to_hf(config, dtype_name, bos_id=bos_id, eos_ids=eos_ids, pad_id=pad_id)
    with _write_together(directory) as temporary:
        for name, part in shards.items():
            whole = {key: made[key]().to("cpu", kind) if key in made else tensor for key, tensor in part.items()}
            write_tensors(temporary(name), whole, kind)
            del whole
        if len(shards) > 1:
            weight_map = {tensor: name for name, part in shards.items() for tensor in part}
            total = sum(tensor.numel() for tensor in renamed.values()) * kind.itemsize
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(temporary(_INDEX), index)
        _write_json(temporary("config.json"), as_classifier(described) if is_reward else described)
    current = {*shards, _INDEX} if len(shards) > 1 else set(shards)
    for stale in {*directory.glob("model-*-of-*.safetensors"), directory / _WEIGHTS, directory / _INDEX}:
        if stale.name not in current:
            stale.unlink(missing_ok=True)


def write_generation_config(
    directory: Path | str,
    *,
    eos_ids: tuple[int, ...],
    bos_id: int | None = None,
    pad_id: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
) -> None:
    """Write generation_config.json: all stop ids, and the sampling defaults that transformers and vLLM take from it."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    raw: dict[str, Any] = {"bos_token_id": bos_id, "eos_token_id": list(eos_ids), "pad_token_id": pad_id}
    given = {key: value for key, value in sampling.items() if value is not None}
    if given:
        raw |= {"do_sample": True, **given}
    with _write_together(Path(directory)) as temporary:
        _write_json(temporary("generation_config.json"), raw)


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int) -> dict[str, dict[str, Tensor]]:
    """Tensors by file name, in order, each file at most `limit` bytes unless one tensor alone is larger."""
    parts: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if parts[-1] and used + size > limit:
            parts.append({})
            used = 0
        parts[-1][name] = tensor
        used += size
    if len(parts) == 1:
        return {_WEIGHTS: parts[0]}
    return {f"model-{number:05}-of-{len(parts):05}.safetensors": part for number, part in enumerate(parts, 1)}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _write_together(directory: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a function from file name to temporary path; renames all at the end, or removes all after a failure."""
    made: dict[str, Path] = {}

    def temporary(name: str) -> Path:
        made[name] = directory / f".{name}.{os.getpid()}.tmp"
        return made[name]

    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield temporary
        for name, path in made.items():
            path.replace(directory / name)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the model to {directory}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        for path in made.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
