"""The key/value cache of a set of slots: one sequence a slot, layers with a window as rings.

Surprises. A position's place needs no table: full layers keep position p at entry p, a ring of R entries at p mod R,
and R is never smaller than the window while positions pass it. So what a row at position p may see are exactly the
first min(p + 1, R) entries, and what an earlier request left in a slot is never seen. Nothing is reserved for
`max_length`: entries double as they fill.

A step reads on a CPU what `lists` names, elsewhere the `views` of so many rows and entries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hanlin.generation.lists import StepLists
from hanlin.models.config import ModelConfig

_FIRST_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a pass are stored: the N that stay (None: all), the rows of N x K flattened heads."""

    kept_N: Tensor | None
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Extent:
    """What a step reads: the first `num_rows` slots, so many positions of each."""

    num_rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a slot held after `length` tokens: keys and values [K, used, H] of every layer."""

    length: int
    keys: list[Tensor]
    values: list[Tensor]


class KeyValueCache:
    """Keys and values [slots, K, entries, H] of every layer, and how many tokens each slot has seen (`lengths`).

    `max_length` bounds the positions that will ever be stored; `num_bytes` says what is held now.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_slots: int,
        max_length: int,
        key_dtype: torch.dtype,
        value_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lengths = [0] * num_slots
        self.num_slots = num_slots
        self.entries = 0  # of layers without a window
        self.device = device
        self._config = config
        self._max_length = max_length
        size = (num_slots, config.num_kv_heads, 0, config.head_dim)
        self._keys = [torch.empty(size, dtype=key_dtype, device=device)] * config.num_layers
        self._values = [torch.empty(size, dtype=value_dtype, device=device)] * config.num_layers
        self._flat: list[tuple[Tensor, Tensor]] = []
        self._base: dict[int | None, Tensor] = {}
        self._lists: StepLists | None = None
        self._views: dict[Extent, list[tuple[Tensor, Tensor]]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values; on a CPU those that nothing was written to take no memory yet."""
        return sum(layer.numel() * layer.element_size() for layer in (*self._keys, *self._values))

    def capacity(self, window: int | None) -> int:
        """Entries of the layers with this window."""
        return self.entries if window is None else min(window, self.entries)

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens."""
        if length <= self.entries:
            return
        assert length <= self._max_length
        self.entries = min(self._max_length, max(2 * length, _FIRST_ENTRIES))
        for layer, window in enumerate(self._config.windows):
            self._keys[layer] = _grown(self._keys[layer], self.capacity(window))
            self._values[layer] = _grown(self._values[layer], self.capacity(window))
        head_dim, num_kv_heads = self._config.head_dim, self._config.num_kv_heads
        self._flat = [
            (k.view(-1, head_dim), v.view(-1, head_dim)) for k, v in zip(self._keys, self._values, strict=True)
        ]
        for window in set(self._config.windows):
            numbers = torch.arange(self.num_slots * num_kv_heads, device=self.device) * self.capacity(window)
            self._base[window] = numbers.view(self.num_slots, num_kv_heads)
        self._forget_readings()

    def place(self, slots: Sequence[int], counts: Sequence[int]) -> dict[int | None, Places]:
        """Advance each slot by its count of new tokens; say, by window, where a stream of them is stored.

        The stream holds the tokens of the first slot, then those of the second, and so on.
        """
        starts = [self.lengths[slot] for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
        self.reserve(max(self.lengths[slot] for slot in slots))
        self._forget_readings()
        position_N = torch.tensor([p for start, n in zip(starts, counts, strict=True) for p in range(start, start + n)])
        left_N = torch.tensor([left for n in counts for left in range(n, 0, -1)])
        slot_N = torch.tensor([slot for slot, n in zip(slots, counts, strict=True) for _ in range(n)])
        places = {}
        for window, base in self._base.items():
            capacity, kept_N = self.capacity(window), None
            if max(counts) > capacity:  # more tokens than the ring holds: only the last ones stay
                kept_N = (left_N <= capacity).nonzero()[:, 0]
            position, slot = (position_N, slot_N) if kept_N is None else (position_N[kept_N], slot_N[kept_N])
            rows = base[slot.to(self.device)] + (position % capacity).to(self.device)[:, None]
            places[window] = Places(None if kept_N is None else kept_N.to(self.device), rows.flatten())
        return places

    def advance(self, num_rows: int) -> list[int]:
        """Advance each of the first slots by one token; the positions of these tokens."""
        positions = self.lengths[:num_rows]
        self.lengths[:num_rows] = [position + 1 for position in positions]
        self.reserve(max(self.lengths[:num_rows]))
        return positions

    def place_step(self, window: int | None, positions_B: Tensor) -> Places:
        """Where one token of each of the first slots is stored; made of tensors alone, for CUDA graphs."""
        rows = self._base[window][: len(positions_B)] + (positions_B % self.capacity(window))[:, None]
        return Places(None, rows.flatten())

    def store(self, layer: int, k_TKH: Tensor, v_TKH: Tensor, places: Places) -> None:
        """Store keys and values of the tokens of a pass."""
        if places.kept_N is not None:
            k_TKH, v_TKH = k_TKH[places.kept_N], v_TKH[places.kept_N]
        keys, values = self._flat[layer]
        keys.index_copy_(0, places.rows, k_TKH.reshape(-1, keys.shape[1]).to(keys.dtype))
        values.index_copy_(0, places.rows, v_TKH.reshape(-1, keys.shape[1]))

    def lists(self, num_rows: int) -> StepLists:
        """What the first slots read, as lists that last for many steps."""
        lengths = self.lengths[:num_rows]
        if self._lists is None or not self._lists.cover(lengths):
            capacity = {window: self.capacity(window) for window in self._base}
            self._lists = StepLists(self._config, lengths, first_SK=self._base, capacity=capacity)
        return self._lists

    def flat(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as rows [slots x K x entries, H], as `lists` numbers them."""
        return self._flat[layer]

    def views(self, extent: Extent) -> list[tuple[Tensor, Tensor]]:
        """Keys [rows x K, H, C] and values [rows x K, C, H] that a step reads, by layer."""
        if extent not in self._views:
            views = []
            for keys, values, window in zip(self._keys, self._values, self._config.windows, strict=True):
                num_read = min(extent.length, self.capacity(window))
                k_XCH, v_XCH = (one[: extent.num_rows].flatten(0, 1)[:, :num_read] for one in (keys, values))
                views.append((k_XCH.transpose(1, 2), v_XCH))
            self._views[extent] = views
        return self._views[extent]

    def mask(self, extent: Extent, window: int | None, positions_B: Tensor) -> Tensor:
        """What is added to the scores [rows x K, 1, C] of a step: 0 where an entry is seen, else -inf."""
        capacity = self.capacity(window)
        entry_C = torch.arange(min(extent.length, capacity), device=self.device)
        last_B11 = positions_B.clamp(max=capacity - 1)[:, None, None]
        mask_B1C = torch.zeros((), device=self.device).where(entry_C <= last_B11, -torch.inf)
        return mask_B1C.expand(-1, self._config.num_kv_heads, -1).reshape(-1, 1, len(entry_C))

    def past(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [C, K, H] of a slot's first `length` tokens, in their order; of a ring the last it holds."""
        capacity = self.capacity(self._config.windows[layer])
        order_C = torch.arange(max(0, length - capacity), length, device=self.device) % capacity
        keys_KCH, values_KCH = (one[layer][slot][:, order_C] for one in (self._keys, self._values))
        return keys_KCH.transpose(0, 1), values_KCH.transpose(0, 1)

    def rewind(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens; False where a ring has lost some of those already."""
        seen = self.lengths[slot]
        assert length <= seen
        if length < seen and any(window is not None and seen > window for window in self._config.windows):
            return False
        self.lengths[slot] = length
        self._forget_readings()
        return True

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of what a slot holds."""
        length = self.lengths[slot]
        used = [min(length, self.capacity(window)) for window in self._config.windows]
        keys, values = (
            [layer[slot, :, :number].clone() for layer, number in zip(layers, used, strict=True)]
            for layers in (self._keys, self._values)
        )
        return Snapshot(length, keys, values)

    def restore(self, snapshot: Snapshot, slots: Sequence[int]) -> None:
        """Let each of the slots hold what the snapshot does."""
        self.reserve(snapshot.length)
        chosen = torch.tensor(slots, dtype=torch.int64, device=self.device)
        for layers, copies in ((self._keys, snapshot.keys), (self._values, snapshot.values)):
            for layer, copied_KCH in zip(layers, copies, strict=True):
                layer[:, :, : copied_KCH.shape[1]].index_copy_(0, chosen, copied_KCH.expand(len(slots), -1, -1, -1))
        for slot in slots:
            self.lengths[slot] = snapshot.length
        self._forget_readings()

    def move(self, source: int, target: int) -> None:
        """Let `target` go on with the sequence of `source`, which becomes free."""
        length = self.lengths[source]
        for layers in (self._keys, self._values):
            for layer, window in zip(layers, self._config.windows, strict=True):
                used = min(length, self.capacity(window))
                layer[target, :, :used] = layer[source, :, :used]
        self.lengths[target] = length
        self.clear(source)

    def clear(self, slot: int) -> None:
        """Make a slot free."""
        self.lengths[slot] = 0
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._lists = None
        self._views.clear()


def _grown(layer: Tensor, entries: int) -> Tensor:
    """The layer with room for more entries.

    A ring that still grows has never wrapped: its entries are where the larger one expects them. Zeros, because a
    weight of 0 times what happens to lie in fresh memory could be NaN.
    """
    have = layer.shape[2]
    if entries <= have:
        return layer
    grown = _zeros((*layer.shape[:2], entries, layer.shape[3]), layer)
    grown[:, :, :have] = layer
    return grown


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the kind of `like`. On a CPU they take memory only where they are written (calloc): slots that stay
    short cost no more than they hold.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(like.dtype).view(shape)
