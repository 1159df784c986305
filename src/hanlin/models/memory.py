"""Large buffers that are used again from step to step.

The fused head needs a copy of its matrix in the compute dtype and the logits of a stream, each up to half a gigabyte.
Fresh memory of that size costs more in page faults than the arithmetic on it: 2 to 5 of 9 CPU seconds of a step of
Gemma 3 270M (docs/journal.md). Whoever owns the steps makes one `Scratch` and lends it to the model.
"""

import weakref
from math import prod

import torch
from torch import Tensor


class Scratch:
    """Buffers by name. One is lent out at a time: while a borrower's tensor lives, the next one gets fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._lent: dict[str, weakref.ref[Tensor]] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor; its memory is kept for the next one of this name. It must not outlive the step."""
        lent = self._lent.get(name)
        if lent is not None and lent() is not None:
            return torch.empty(shape, dtype=dtype, device=device)
        buffer = self._buffers.get(name)
        size = prod(shape)
        if buffer is None or buffer.dtype != dtype or buffer.device != device or len(buffer) < size:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        view = buffer[:size].view(shape)
        self._lent[name] = weakref.ref(view)
        return view
