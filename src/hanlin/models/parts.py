"""One of several equal parts of every layer: which axis of which parameter is divided, as a table.

A layer's heads and the width of its feed-forward are divided (Megatron-LM, arXiv 1909.08053, section 3): the maps into
them by rows, the maps out of them by columns, so that each part computes a summand of what the layer adds to the
residual stream. All else is whole in every part. Where there are fewer key/value heads than parts (Gemma 2B has one),
every part has all keys and values, and reads the one head that its queries belong to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from hanlin.errors import ConfigError
from hanlin.models.config import ModelConfig
from hanlin.models.transformer import Transformer

Kind = Literal["rows", "columns", "partial"]
# What becomes of a block's parameters; those that are not here are whole, with the same gradient in every part.
# "partial": whole as well, and each part has a summand of its gradient. `down` and `up` are an adapter's A and B.
TABLE: Mapping[str, Kind] = {
    "attention.query.weight": "rows",
    "attention.query.bias": "rows",
    "attention.query.down": "partial",
    "attention.query.up": "rows",
    "attention.query_norm.weight": "partial",
    "attention.key.weight": "rows",
    "attention.key.bias": "rows",
    "attention.key.down": "partial",
    "attention.key.up": "rows",
    "attention.key_norm.weight": "partial",
    "attention.value.weight": "rows",
    "attention.value.bias": "rows",
    "attention.value.down": "partial",
    "attention.value.up": "rows",
    "attention.output.weight": "columns",
    "attention.output.down": "columns",
    "attention.output.up": "partial",
    "mlp.gate.weight": "rows",
    "mlp.gate.down": "partial",
    "mlp.gate.up": "rows",
    "mlp.up.weight": "rows",
    "mlp.up.down": "partial",
    "mlp.up.up": "rows",
    "mlp.down.weight": "columns",
    "mlp.down.down": "columns",
    "mlp.down.up": "partial",
}
_KEYS = ("attention.key.", "attention.value.")  # "partial" where the parts share their heads
_AXES = {"rows": 0, "columns": 1}


class Stored(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def copy_to(self, out: Tensor, /) -> None: ...
    def part(self, first: int, count: int, /) -> "Stored | None": ...


Read = Callable[[str, Stored, Tensor], None]
"""Fills a tensor with what this process keeps of a parameter: its name, where it is stored, the tensor."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part number `index` of `size` of a model with `num_kv_heads` key/value heads; names are `named_parameters`'."""

    index: int = 0
    size: int = 1
    num_kv_heads: int = 0

    @property
    def kv_head(self) -> int | None:
        """The key/value head that this part's queries read; None where the heads are divided."""
        return self.index * self.num_kv_heads // self.size if self.num_kv_heads % self.size else None

    def kind(self, name: str) -> Kind | None:
        """What becomes of a parameter; None for one that is whole, with a whole gradient."""
        role = name.split(".", 2)[-1] if name.startswith("blocks.") and self.size > 1 else ""
        if self.kv_head is not None and role.startswith(_KEYS):
            return "partial"
        return TABLE.get(role)

    def axis(self, name: str) -> int | None:
        """The axis along which a parameter is divided."""
        return _AXES.get(self.kind(name) or "")

    def share(self, name: str) -> int:
        """In how many parts it is divided."""
        return 1 if self.axis(name) is None else self.size

    def take(self, name: str, whole: Tensor) -> Tensor:
        """This part of a whole parameter, in memory of its own."""
        if (axis := self.axis(name)) is None:
            return whole
        length = whole.shape[axis] // self.size
        return whole.narrow(axis, self.index * length, length).clone(memory_format=torch.contiguous_format)

    def read(self, name: str, stored: Stored, out: Tensor) -> None:
        """Fill `out` with this part of a stored parameter."""
        axis = self.axis(name)
        first = 0 if axis is None else self.index * out.shape[axis]
        read_slice(stored, out, axis or 0, first)

    def narrowed(self, config: ModelConfig) -> ModelConfig:
        """What this part of the model looks like."""
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=1 if self.kv_head is not None else config.num_kv_heads // self.size,
            ffn_width=config.ffn_width // self.size,
        )

    def widened(self, config: ModelConfig) -> ModelConfig:
        """The whole model, of which a part looks like `config`."""
        if self.size == 1:
            return config
        heads, ffn_width = config.num_heads * self.size, config.ffn_width * self.size
        return replace(config, num_heads=heads, num_kv_heads=self.num_kv_heads, ffn_width=ffn_width)


WHOLE = Part()


def part_of(config: ModelConfig, index: int, size: int) -> Part:
    """Part `index` of `size` of a model. Raises ConfigError where its heads or its feed-forward cannot be divided so
    often.
    """
    if not _divides(config, size):
        possible = ", ".join(str(one) for one in range(1, config.num_heads + 1) if _divides(config, one))
        raise ConfigError(
            f"parallel.tensor = {size} does not divide this model, which has {config.num_heads} query heads, "
            f"{config.num_kv_heads} key/value heads and a feed-forward width of {config.ffn_width}: it can be "
            f"{possible}"
        )
    return Part(index, size, config.num_kv_heads) if size > 1 else WHOLE


def _divides(config: ModelConfig, size: int) -> bool:
    keys = config.num_kv_heads % size == 0 or size % config.num_kv_heads == 0
    return keys and config.num_heads % size == 0 and config.ffn_width % size == 0


@torch.no_grad()
def divide(model: Transformer, part: Part) -> None:
    """Keep of a whole model only this part. What it computes must be summed over all parts (training/tensor.py)."""
    if part.size == 1:
        return
    for name, parameter in model.named_parameters():
        parameter.data = part.take(name, parameter.data)
    model.config = part.narrowed(model.config)


def fill(
    model: Transformer, stored: Mapping[str, Stored], device: torch.device, *, read: Read = WHOLE.read, below: str = ""
) -> None:
    """Give every parameter that has no memory yet (device "meta") its memory on `device`, and read it; or only those
    whose names begin with `below`.
    """
    made: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name.startswith(below):
            made[name] = torch.empty_like(parameter.data, device=device)
            read(name, stored[name], made[name])
    model.load_state_dict(made, strict=False, assign=True)


def read_slice(stored: Stored, out: Tensor, axis: int, first: int) -> None:
    """Fill `out` with the slice of a stored tensor that begins at `first` of an axis.

    Of rows nothing else is read, unless the file has them in another order; else one whole tensor is in memory for a
    moment.
    """
    if tuple(stored.shape) == tuple(out.shape):
        stored.copy_to(out)
    elif axis == 0 and (part := stored.part(first, len(out))) is not None:
        part.copy_to(out)
    else:
        whole = torch.empty(stored.shape, dtype=out.dtype)
        stored.copy_to(whole)
        out.copy_(whole.narrow(axis, first, out.shape[axis]))
