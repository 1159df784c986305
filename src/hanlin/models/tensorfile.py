"""Reads and writes .safetensors files one tensor, and of that a few megabytes, at a time.

The `safetensors` package maps or copies whole files; here a tensor goes from the file straight into memory that
already exists, on whatever device and in whatever dtype, so that loading and saving never hold a second copy of a
model. The format is 8 bytes of header length, a JSON header, then the data
(https://github.com/huggingface/safetensors#format).
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hanlin.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
STATE_DTYPES = DTYPES | {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64}
"""What an optimizer may keep beside weights."""
_NAMES = {dtype: name for name, dtype in STATE_DTYPES.items()}
_CHUNK_ELEMENTS = 2**15  # stays in the cache, and below what torch would hand to its thread pool
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors package's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a .safetensors file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    num_bytes: int

    def copy_to(self, out: Tensor) -> None:
        """Fill `out`, which has this shape, any device and any float dtype."""
        flat, done = out.view(-1), 0
        with self.path.open("rb") as file:
            file.seek(self.start)
            if out.dtype == self.dtype and out.device.type == "cpu" and self.num_bytes:
                self._fill(file, flat.view(torch.uint8))
                return
            for chunk in self._chunks(file):
                flat[done : done + chunk.numel()].copy_(chunk)
                done += chunk.numel()

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Some rows of a matrix [V, D], read alone."""
        num_bytes = self.shape[1] * self.dtype.itemsize
        buffer = torch.empty(len(indices), num_bytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            for place, index in enumerate(indices):
                file.seek(self.start + index * num_bytes)
                self._fill(file, buffer[place])
        return buffer.view(self.dtype)

    def part(self, first: int, count: int) -> "StoredTensor":
        """The rows [first, first + count) as a tensor of their own."""
        row = prod(self.shape[1:]) * self.dtype.itemsize
        shape = (count, *self.shape[1:])
        return replace(self, shape=shape, start=self.start + first * row, num_bytes=count * row)

    def equals(self, other: "StoredTensor") -> bool:
        """True where both hold the same bytes in the same dtype and shape."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        with self.path.open("rb") as mine, other.path.open("rb") as theirs:
            mine.seek(self.start)
            theirs.seek(other.start)
            pairs = zip(self._chunks(mine), other._chunks(theirs), strict=True)
            return all(torch.equal(one.view(torch.uint8), two.view(torch.uint8)) for one, two in pairs)

    def _chunks(self, file: BinaryIO) -> Iterator[Tensor]:
        step = _CHUNK_ELEMENTS * self.dtype.itemsize
        buffer = torch.empty(min(self.num_bytes, step), dtype=torch.uint8)
        for offset in range(0, self.num_bytes, step):
            chunk = buffer[: min(step, self.num_bytes - offset)]
            self._fill(file, chunk)
            yield chunk.view(self.dtype)

    def _fill(self, file: BinaryIO, out: Tensor) -> None:
        if file.readinto(out.numpy()) != len(out):  # pyright: ignore[reportAttributeAccessIssue]
            raise CheckpointError(f"{self.path}: the file ends inside tensor {self.name}; copy or download it again")


def read_header(path: Path, dtypes: Mapping[str, torch.dtype] = DTYPES) -> dict[str, StoredTensor]:
    """The tensors of one file by name, checked to lie within it. Raises CheckpointError unless the file is whole and
    holds no other dtypes than these.
    """
    again = "copy or download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if size < 8 or not 2 <= header_length <= min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path}: not a whole .safetensors file ({size:,} bytes); {again}")
            header = json.loads(file.read(header_length))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error}); {again}") from error
    tensors = {}
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _stored(path, name, entry, 8 + header_length, dtypes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the header does not follow the safetensors format ({error!r}); {again}"
        ) from error
    needed = max((tensor.start + tensor.num_bytes for tensor in tensors.values()), default=0)
    if size < needed:
        raise CheckpointError(f"{path}: truncated, {size:,} bytes where the header needs {needed:,}; {again}")
    return tensors


def _stored(
    path: Path, name: str, entry: dict[str, object], data_start: int, dtypes: Mapping[str, torch.dtype]
) -> StoredTensor:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]  # pyright: ignore
    dtype = dtypes.get(str(entry["dtype"]))
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name} is stored as {entry['dtype']}; supported: {', '.join(dtypes)} "
            "(open the unquantized checkpoint, or a GGUF file)"
        )
    elements = 1
    for length in shape:
        elements *= length
    if start < 0 or stop - start != elements * dtype.itemsize:
        raise ValueError(f"{name}: {stop - start} bytes for shape {list(shape)}")
    return StoredTensor(path, name, dtype, shape, data_start + start, stop - start)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Write `tensors` to a new file as `dtype`, or each in its own, and flush it to the disk; lets OSError travel.

    The metadata {"format": "pt"} is what transformers asks for.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        kind = dtype or tensor.dtype
        stop = offset + tensor.numel() * kind.itemsize
        header[name] = {"dtype": _NAMES[kind], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb", buffering=2**20) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().view(-1)
            for start in range(0, len(flat), _CHUNK_ELEMENTS):
                chunk = flat[start : start + _CHUNK_ELEMENTS].to(device="cpu", dtype=dtype or tensor.dtype)
                file.write(chunk.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
