"""Reads GGUF files (llama.cpp's format): header, quantized tensors in our layout, and the config they imply.

The header is parsed here, because the `gguf` package's reader takes ten seconds for a 262,144-piece vocabulary; blocks
are dequantized by that package, a few thousand rows at a time. Surprises: llama.cpp stores dimensions fastest first;
it permutes the rows of q and k of Llama models; it stores Gemma's norms as 1 + w; Llama 3.1's rotary scaling is a
tensor of factors, not metadata; and older files leave out what llama.cpp fills in by itself (Gemma 3's window pattern,
local theta and query scale).
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from hanlin.errors import CheckpointError
from hanlin.models.config import ModelConfig, RopeScaling
from hanlin.models.families import FULL, SLIDING, config_from_hf
from hanlin.models.layers import rotary_frequencies
from hanlin.models.layouts import FAMILIES, names_to_gguf

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K")
_CHUNK_ELEMENTS = 2**15  # stays in the cache, and below what torch would hand to its thread pool
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_DAMAGED = "not a whole GGUF file; copy or download it again"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file; `shape` is slowest first, as in torch."""

    path: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    offset: float = 0.0  # what llama.cpp added to the values
    pair_rows: int = 0  # head size where the rows of each head are stored in interleaved order

    def copy_to(self, out: Tensor) -> None:
        """Dequantize into `out`, which has this shape, any device and any float dtype."""
        columns = self.shape[-1]
        rows_of_out = out.view(-1, columns)
        done = 0
        for values in self._blocks(columns):
            rows = torch.from_numpy(values)
            if self.pair_rows:
                rows = rows.view(-1, self.pair_rows // 2, 2, columns).transpose(1, 2).reshape(-1, columns)
            if self.offset:
                rows = rows - self.offset
            rows_of_out[done : done + len(rows)].copy_(rows)
            done += len(rows)

    def part(self, first: int, count: int) -> "GgufTensor | None":
        """The rows [first, first + count) as a tensor of their own; None where they are not stored together."""
        if self.pair_rows and (first % self.pair_rows or count % self.pair_rows):
            return None
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        row_bytes = math.prod(self.shape[1:]) // block * block_bytes
        return replace(self, shape=(count, *self.shape[1:]), start=self.start + first * row_bytes)

    def _blocks(self, columns: int) -> Iterator[np.ndarray]:
        """float32 [rows, columns], whole heads at a time where rows must be reordered."""
        num_rows = math.prod(self.shape[:-1])
        unit = self.pair_rows or 1
        step = max(1, _CHUNK_ELEMENTS // (columns * unit)) * unit
        row_bytes = columns // GGML_QUANT_SIZES[self.kind][0] * GGML_QUANT_SIZES[self.kind][1]
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, num_rows, step):
                count = min(step, num_rows - first)
                raw = np.frombuffer(bytearray(_read(file, count * row_bytes)), dtype=np.uint8)
                # One wide row: `dequantize` loops in Python over every 16 rows it is given.
                yield dequantize(raw[None], self.kind).reshape(count, columns)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (arrays of the vocabulary left out) and tensors of a file."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def number(self, key: str) -> Any:
        """The architecture's metadata value, or None; one value a layer, all the same, counts as one value."""
        value = self.fields.get(f"{self.fields['general.architecture']}.{key}")
        return value[0] if isinstance(value, list) and len(set(value)) == 1 else value

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds the matrices as stored; bfloat16 for quantized ones, which is what they came from."""
        kind = self.tensors["token_embd.weight"].kind.name
        return {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse the header of a GGUF file. Raises CheckpointError for damaged files and unknown quantizations."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, version = file.read(4), file.read(4)
            if magic != b"GGUF":
                raise CheckpointError(f"{path}: not a GGUF file (it starts with {magic!r})")
            if version not in (b"\2\0\0\0", b"\3\0\0\0"):
                raise CheckpointError(f"{path}: GGUF version bytes {version!r}; supported: 2 and 3, little-endian")
            num_tensors, num_fields = struct.unpack("<QQ", _read(file, 16))
            fields = {}
            for _ in range(num_fields):
                key, kind = _string(file), struct.unpack("<I", _read(file, 4))[0]
                fields[key] = _value(file, kind, skip=key.startswith("tokenizer."))
            entries = [_tensor_entry(file) for _ in range(num_tensors)]
            alignment = fields.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                raise EOFError(f"general.alignment is {alignment!r}")
            data_start = -(-file.tell() // alignment) * alignment
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (EOFError, UnicodeDecodeError, KeyError, MemoryError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: {_DAMAGED} ({error})") from error
    if fields.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{path}: one of {fields['split.count']} parts; join them with `llama-gguf-split --merge`"
        )
    tensors = {name: _tensor(path, name, kind, shape, data_start + start) for name, shape, kind, start in entries}
    for tensor in tensors.values():
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        if tensor.start + math.prod(tensor.shape) // block * block_bytes > size:
            raise CheckpointError(f"{path}: truncated inside tensor {tensor.name} ({size:,} bytes); {_DAMAGED}")
    return GgufHeader(path, fields, tensors)


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"ends at byte {file.tell():,}")
    return data


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _read(file, 8))
    if length > 2**30:
        raise EOFError(f"a string of {length:,} bytes")
    return _read(file, length).decode()


def _value(file: BinaryIO, kind: int, *, skip: bool) -> Any:
    """One metadata value; an array that is skipped is read past and given as None."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        value = struct.unpack("<" + _SCALARS[kind], _read(file, struct.calcsize(_SCALARS[kind])))[0]
        return float(str(np.float32(value))) if kind == _FLOAT32 else value  # 1e-06 again, not 9.999999974752427e-07
    item, count = struct.unpack("<IQ", _read(file, 12))
    if item == _ARRAY:
        raise KeyError("nested arrays")
    if item == _STRING:
        if not skip:
            return [_string(file) for _ in range(count)]
        for _ in range(count):
            (length,) = struct.unpack("<Q", _read(file, 8))
            _read(file, length)
        return None
    data = _read(file, count * struct.calcsize(_SCALARS[item]))
    return None if skip else list(struct.unpack(f"<{count}{_SCALARS[item]}", data))


def _tensor_entry(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(file)
    (num_dims,) = struct.unpack("<I", _read(file, 4))
    if num_dims > 8:
        raise EOFError(f"tensor {name} with {num_dims} dimensions")
    dims = struct.unpack(f"<{num_dims}Q", _read(file, 8 * num_dims))
    kind, start = struct.unpack("<IQ", _read(file, 12))
    return name, tuple(reversed(dims)), kind, start


def _tensor(path: Path, name: str, kind: int, shape: tuple[int, ...], start: int) -> GgufTensor:
    known = {member.value: member for member in GGMLQuantizationType}
    label = known[kind].name if kind in known else f"type {kind}"
    if label not in KINDS:
        raise CheckpointError(f"{path}: tensor {name} is quantized as {label}; supported: {', '.join(KINDS)}")
    if not shape or shape[-1] % GGML_QUANT_SIZES[known[kind]][0]:
        raise CheckpointError(f"{path}: tensor {name} of shape {list(shape)} cannot hold {label} blocks; {_DAMAGED}")
    return GgufTensor(path, name, known[kind], shape, start)


def config_from_gguf(header: GgufHeader) -> ModelConfig:
    """The config a GGUF file implies: its metadata in Hugging Face's words, llama.cpp's defaults where it is silent."""
    source = str(header.path)
    arch = header.fields.get("general.architecture")
    if arch not in FAMILIES:
        raise CheckpointError(f"{source}: general.architecture is {arch!r}; supported: {', '.join(FAMILIES)}")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{source}: tensor token_embd.weight [vocabulary, width] is missing")
    get = header.number
    raw: dict[str, Any] = {
        "model_type": FAMILIES[arch].model_types[0],
        "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "num_experts": get("expert_count"),
        "rope_theta": get("rope.freq_base"),
        "rope_local_base_freq": get("rope.freq_base_swa"),
    }
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(raw[key], int) or raw[key] < 1:
            raise CheckpointError(
                f"{source}: the metadata gives {raw[key]!r} for {key}; expected a positive whole number"
            )
    raw["head_dim"] = _head_dim(header, raw["hidden_size"] // raw["num_attention_heads"])
    raw |= _attention_fields(header, raw)
    # The rotary factors are checked against the other fields, so they come last.
    return config_from_hf(
        raw | {"rope_scaling": _rope_scaling(header, config_from_hf(raw, source=source))}, source=source
    )


def _head_dim(header: GgufHeader, default: int) -> int:
    given = [header.number(key) for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")]
    sizes = {size for size in given if size is not None}
    if len(sizes) > 1:
        raise CheckpointError(
            f"{header.path}: key, value and rotary sizes of a head are {given}; expected one size for all"
        )
    return int(next(iter(sizes), default))


def _attention_fields(header: GgufHeader, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Query scale, soft-caps and windows. The 27B models scale by width / heads (llama.cpp `f_attention_scale`)."""
    arch, width = header.fields["general.architecture"], raw["hidden_size"]
    get, scale = header.number, header.number("attention.scale")
    if (arch, raw["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62)):
        found: dict[str, Any] = {"query_pre_attn_scalar": width // raw["num_attention_heads"]}
    else:
        found = {"query_pre_attn_scalar": raw["head_dim"] if scale is None else scale**-2}
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if get(cap) is not None:
            found[cap] = get(cap)
    # Released Gemma 3 sizes: 512 up to 1B, 1024 above; Gemma 2: 4096.
    usual = 4096 if arch == "gemma2" else 512 if width <= 1152 else 1024
    found["sliding_window"] = get("attention.sliding_window") or usual
    pattern = header.fields.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        found["layer_types"] = [SLIDING if local else FULL for local in pattern]
    elif pattern is not None:
        found["sliding_window_pattern"] = pattern
    return found


def _rope_scaling(header: GgufHeader, config: ModelConfig) -> dict[str, Any] | None:
    """Linear scaling from metadata; Llama 3.1's from `rope_freqs.weight` (llama.cpp, `generate_extra_tensors`)."""
    kind = header.fields.get(f"{header.fields['general.architecture']}.rope.scaling.type")
    stored = header.tensors.get("rope_freqs.weight")
    if stored is None:
        return None if kind in (None, "none") else {"rope_type": kind, "factor": header.number("rope.scaling.factor")}
    factors = torch.empty(stored.shape)
    stored.copy_to(factors)
    guess = RopeScaling(kind="llama3", factor=float(factors.max()))
    plain = rotary_frequencies(config.head_dim, config.rope_theta, None)
    expected = plain / rotary_frequencies(config.head_dim, config.rope_theta, guess)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(
            f"{header.path}: rope_freqs.weight does not follow Llama 3.1's scaling "
            f"(factor {guess.factor:g}, 1, 4, 8192); open the Hugging Face checkpoint of this model instead"
        )
    return {
        "rope_type": "llama3",
        "factor": guess.factor,
        "low_freq_factor": guess.low_freq_factor,
        "high_freq_factor": guess.high_freq_factor,
        "original_max_position_embeddings": guess.original_max_length,
    }


def gguf_tensors(header: GgufHeader, config: ModelConfig) -> dict[str, GgufTensor]:
    """The file's tensors under llama.cpp's names, each told how to undo what llama.cpp did to it."""
    family = FAMILIES[config.family]
    theirs = {name: ours for ours, name in names_to_gguf(config).items()}
    found = {}
    for name, tensor in header.tensors.items():
        if name == "rope_freqs.weight":
            continue  # already in the config
        ours = theirs.get(name, "")
        permuted = family.permuted_gguf and ours.endswith(("attention.query.weight", "attention.key.weight"))
        offset = config.norm_offset if ours.endswith("norm.weight") else 0.0
        found[name] = replace(tensor, offset=offset, pair_rows=config.head_dim if permuted else 0)
    return found
