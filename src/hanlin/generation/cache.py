"""The key/value cache of a set of slots: one sequence a slot, layers with a window as rings.

Surprises. A position's place needs no table: full layers keep position p at entry p, a ring of R entries at p mod R,
and R is never smaller than the window while positions pass it. So what a row at position p may see are exactly the
first min(p + 1, R) entries, and what an earlier request left in a slot is never seen. Nothing is reserved for
`max_length`: entries double as they fill.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hanlin.models.config import ModelConfig

_FIRST_ENTRIES = 64
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a pass are stored: the N that stay (None: all), the rows of N x 2 x K flattened heads."""

    kept_N: Tensor | None
    rows: Tensor


class KeyValueCache:
    """Keys and values [2, slots, K, entries, H] of every layer, and how many tokens each slot has seen (`lengths`).

    `max_length` bounds the positions that will ever be stored; `num_bytes` says what is held now.
    """

    def __init__(
        self, config: ModelConfig, *, num_slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.lengths = [0] * num_slots
        self.num_slots = num_slots
        self._config = config
        self._max_length = max_length
        self._entries = 0
        empty = torch.empty(2, num_slots, config.num_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self._layers = [empty] * config.num_layers
        self._flat = self._layers
        self._base: dict[int | None, Tensor] = {}
        self._views: list[tuple[Tensor, Tensor]] = []
        self._views_key: object = None

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def capacity(self, window: int | None) -> int:
        """Entries of the layers with this window."""
        return self._entries if window is None else min(window, self._entries)

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens."""
        if length <= self._entries:
            return
        assert length <= self._max_length
        old = {window: self.capacity(window) for window in self._config.windows}
        self._entries = min(self._max_length, max(length, 2 * self._entries, _FIRST_ENTRIES))
        for layer, window in enumerate(self._config.windows):
            have, want = old[window], self.capacity(window)
            if want > have:
                # A ring that still grows has never wrapped: its entries are where the larger one expects them.
                # Zeros, because a weight of 0 times what happens to lie in fresh memory could be NaN.
                grown = self._layers[layer].new_zeros((*self._layers[layer].shape[:3], want, self._config.head_dim))
                grown[..., :have, :] = self._layers[layer]
                self._layers[layer] = grown
        self._flat = [layer.view(-1, self._config.head_dim) for layer in self._layers]
        device, num_kv_heads = self._layers[0].device, self._config.num_kv_heads
        for window in old:
            numbers = torch.arange(2 * self.num_slots * num_kv_heads, device=device) * self.capacity(window)
            self._base[window] = numbers.view(2, self.num_slots, num_kv_heads).transpose(0, 1).contiguous()

    def place(self, slots: Sequence[int], counts: Sequence[int]) -> dict[int | None, Places]:
        """Advance each slot by its count of new tokens; say, by window, where a stream of them is stored.

        The stream holds the tokens of the first slot, then those of the second, and so on.
        """
        starts = [self.lengths[slot] for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
        self.reserve(max(self.lengths[slot] for slot in slots))
        device = self._layers[0].device
        position_N = torch.tensor([p for start, n in zip(starts, counts, strict=True) for p in range(start, start + n)])
        left_N = torch.tensor([left for n in counts for left in range(n, 0, -1)])
        slot_N = torch.tensor([slot for slot, n in zip(slots, counts, strict=True) for _ in range(n)])
        places = {}
        for window, base in self._base.items():
            capacity, kept_N = self.capacity(window), None
            if max(counts) > capacity:  # a prompt longer than the ring: only its end stays
                kept_N = (left_N <= capacity).nonzero()[:, 0]
            position, slot = (position_N, slot_N) if kept_N is None else (position_N[kept_N], slot_N[kept_N])
            rows = base[slot.to(device)] + (position % capacity).to(device)[:, None, None]
            places[window] = Places(None if kept_N is None else kept_N.to(device), rows.flatten())
        return places

    def store(self, layer: int, kv_TXH: Tensor, places: Places) -> None:
        """Store the K key heads, then the K value heads, of each token of the pass, [T, 2 K, H]."""
        if places.kept_N is not None:
            kv_TXH = kv_TXH[places.kept_N]
        flat = self._flat[layer]
        flat.index_copy_(0, places.rows, kv_TXH.reshape(-1, flat.shape[1]).to(flat.dtype))

    def views(self, num_rows: int) -> list[tuple[Tensor, Tensor]]:
        """Keys [rows x K, H, C] and values [rows x K, C, H] of the first slots, by layer: what any of them uses.

        C is rounded up to a block, so that the views last for many steps.
        """
        used = {window: self._num_read(num_rows, window) for window in self._base}
        key = (num_rows, self._entries, tuple(used.values()))
        if key != self._views_key:
            self._views_key, self._views = key, []
            for layer, window in zip(self._layers, self._config.windows, strict=True):
                both = layer[:, :num_rows].flatten(1, 2)[:, :, : used[window]]
                self._views.append((both[0].transpose(1, 2), both[1]))
        return self._views

    def mask(self, num_rows: int, window: int | None) -> Tensor:
        """What is added to the scores [rows x K, 1, C] of the first slots: 0 where an entry is seen, else -inf."""
        capacity, device = self.capacity(window), self._layers[0].device
        seen_B1 = torch.tensor([[min(length, capacity)] for length in self.lengths[:num_rows]], device=device)
        entry_C = torch.arange(self._num_read(num_rows, window), device=device)
        mask_BC = torch.zeros(num_rows, len(entry_C), device=device).masked_fill_(entry_C >= seen_B1, -torch.inf)
        return mask_BC.repeat_interleave(self._config.num_kv_heads, 0)[:, None]

    def _num_read(self, num_rows: int, window: int | None) -> int:
        longest = max(self.lengths[:num_rows])
        return min(-(-longest // _BLOCK) * _BLOCK, self.capacity(window))

    def move(self, source: int, target: int) -> None:
        """Let `target` go on with the sequence of `source`, which becomes free."""
        length = self.lengths[source]
        for layer, window in zip(self._layers, self._config.windows, strict=True):
            used = min(length, self.capacity(window))
            layer[:, target, :, :used] = layer[:, source, :, :used]
        self.lengths[target] = length
        self.clear(source)

    def clear(self, slot: int) -> None:
        """Make a slot free."""
        self.lengths[slot] = 0
