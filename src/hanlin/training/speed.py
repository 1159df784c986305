"""How fast a device is, in a second of trying: the model's own matrix products, and copies."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hanlin.models.config import ModelConfig

_ROWS = 1024  # tokens of the products that are tried
_LARGEST = 2**26  # numbers of a matrix that is tried; of larger ones a part is
_COPIED = 2**26  # bytes, beyond any cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a device does in a second: FLOP of matrix products, bytes read and written."""

    products: float
    bandwidth: float


def measure_speed(device: torch.device, dtype: torch.dtype, config: ModelConfig, *, seconds: float = 0.8) -> Speed:
    """Products of a feed-forward of this model, forward and both backward; copies of fp32 numbers."""
    width, inner = config.width, min(config.ffn_width, _LARGEST // config.width)
    x_TD, weight_FD, grad_TF = (
        torch.randn(shape, device=device).to(dtype) for shape in ((_ROWS, width), (inner, width), (_ROWS, inner))
    )

    def products() -> Tensor:
        _ = x_TD @ weight_FD.T
        _ = grad_TF @ weight_FD
        return grad_TF.T @ x_TD

    from_X = torch.zeros(_COPIED // 4, device=device)
    to_X = torch.empty_like(from_X)
    flops = 3 * 2.0 * _ROWS * width * inner
    return Speed(
        products=flops / _time(products, seconds * 3 / 4),
        bandwidth=2 * _COPIED / _time(lambda: to_X.copy_(from_X), seconds / 4),
    )


def _time(work: Callable[[], Tensor], seconds: float) -> float:
    """Seconds of one call, the fastest of those that fit into `seconds`; each waits for the device."""
    work().flatten()[0].item()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work().flatten()[0].item()
        best = min(best, time.perf_counter() - start)
    return best
