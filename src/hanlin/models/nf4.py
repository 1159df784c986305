"""Frozen matrices in four bits: NF4 with double quantization (QLoRA, arXiv 2305.14314, section 3), by bitsandbytes.

Every 64 numbers of a matrix share a scale, every 256 scales share one of their own: 4.13 bits a number. A matrix is
unpacked to the compute dtype for each product and thrown away, in the backward pass again. What may surprise: it works
on a CPU too, where it saves memory and costs time; and nothing here learns: adapters on top do (models/lora.py).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hanlin.errors import ConfigError
from hanlin.models.layers import Linear
from hanlin.models.transformer import Transformer

BLOCK, SCALES_BLOCK = 64, 256
BYTES_PER_NUMBER = 0.5 + 1 / BLOCK + 4 / (BLOCK * SCALES_BLOCK)
"""Half a byte, a byte of scale for a block, four bytes of scale for a block of scales."""


class Nf4(nn.Module):
    """A matrix [O, I] in four bits. It stands where a `Linear` has its weight, and has no parameters."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        functional = _functional()
        self.shape = matrix.shape
        packed, self._state = functional.quantize_4bit(
            matrix.detach().contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("packed", packed)
        self._unpack: Callable[[Tensor, Any], Tensor] = functional.dequantize_4bit

    @property
    def device(self) -> torch.device:
        return self._packed.device

    @property
    def num_bytes(self) -> int:
        """Of what is kept: packed numbers and both levels of scales."""
        return self._packed.nbytes + self._state.absmax.nbytes + self._state.state2.absmax.nbytes

    @property
    def _packed(self) -> Tensor:
        return self.get_buffer("packed")

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [O, I], without gradients."""
        state = copy.copy(self._state)
        state.dtype = dtype
        return self._unpack(self._packed, state)

    def matrix(self) -> Tensor:
        """The matrix in fp32."""
        return self.unpacked(torch.float32)


def in_dtype(weight: Tensor | Nf4, dtype: torch.dtype) -> Tensor:
    """A frozen matrix as a product takes it."""
    return weight.unpacked(dtype) if isinstance(weight, Nf4) else weight.to(dtype)


class Nf4Linear(nn.Module):
    """`y = x Wᵀ (+ b)` for x [T, in] and a W in four bits: a `Linear` that no adapter is put on."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight, self.bias = Nf4(linear.weight), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _FrozenProduct.apply(x, self.weight)  # pyright: ignore[reportAssignmentType]
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def matrix(self) -> Tensor:
        """W in fp32, [out, in]: what inference uses, rounded to its own dtype."""
        return self.weight.matrix()


class _FrozenProduct(torch.autograd.Function):
    """`x Wᵀ` that keeps neither x nor the unpacked W."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight: Nf4) -> Tensor:
        ctx.weight = weight
        return F.linear(x_TI, weight.unpacked(x_TI.dtype))

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad_TO @ ctx.weight.unpacked(grad_TO.dtype), None


@torch.no_grad()
def pack_layers(model: Transformer, device: torch.device, read: Callable[[str], None] = lambda below: None) -> None:
    """Pack every map of the layers on `device`, one at a time: the device never holds the layers unpacked. Norms,
    embedding and head stay as they are; the norms come to the device too. Freezes the model.

    `read` is asked to fill the parameters whose names begin with a layer's, before it is packed: so the layers may be
    without memory until then.
    """
    model.requires_grad_(False)
    for number, block in enumerate(model.blocks):
        read(f"blocks.{number}.")
        for path, linear in [(path, one) for path, one in block.named_modules() if isinstance(one, Linear)]:
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, Nf4Linear(linear.to(device)))
        block.to(device)


def packed_matrices(model: nn.Module) -> dict[str, Nf4]:
    """Every matrix in four bits, by the name that its parameter would have."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Nf4)}


def check_nf4() -> None:
    """Raise ConfigError where matrices cannot be packed."""
    _functional()


def _functional() -> Any:
    """bitsandbytes' functions, imported only where four bits are asked for."""
    try:
        import bitsandbytes.functional as functional  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f'model.quantization = "nf4" is done by bitsandbytes, which cannot be imported ({error}): pip install '
            '"hanlin[cuda]" (it works on a CPU too), or leave quantization out: [lora] with model.dtype = "bfloat16" '
            "keeps the frozen weights in two bytes a number"
        ) from None
    return functional
