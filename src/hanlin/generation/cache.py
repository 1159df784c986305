"""The key/value cache of a set of slots: one sequence a slot, layers with a window as rings.

Surprises. A position's place needs no table: full layers keep position p at entry p, a ring of R entries at p mod R,
and R is never smaller than the window while positions pass it. So what a row at position p may see are exactly the
first min(p + 1, R) entries, and what an earlier request left in a slot is never seen. Nothing is reserved for
`max_length`: entries double as they fill.

Rows of a batch differ in length, and a product of matrices reads as much for each as for the longest. So neighbouring
slots that are about as long form a `Group`, which reads what its own longest needs.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hanlin.models.config import ModelConfig

_FIRST_ENTRIES = 64
_BLOCK = 32
# What one more group costs a layer on a CPU (about 20 microseconds), in numbers of keys that could be read instead.
_GROUP_COST = 50_000


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a pass are stored: the N that stay (None: all), the rows of N x K flattened heads."""

    kept_N: Tensor | None
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Slots [start, stop) that all read the entries of `length` positions."""

    start: int
    stop: int
    length: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What the R = rows x Q query heads of a group read in the layers of one window, for kernels that follow lists.

    `scores`: a CSR matrix [R, all entries of the layer], whose values are the R x C scores and change from layer to
    layer; `entries` its columns; `starts` where each head's list begins.
    """

    scores: Tensor
    entries: Tensor
    starts: Tensor


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
        self._shares = {window: number / config.num_layers for window, number in Counter(config.windows).items()}
        self._base: dict[int | None, Tensor] = {}
        self._groups: tuple[Group, ...] = ()
        self._views: dict[Group, list[tuple[Tensor, Tensor]]] = {}
        self._listings: dict[tuple[Group, int | None], Listing] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(layer.numel() * layer.element_size() for layer in (*self._keys, *self._values))

    def capacity(self, window: int | None) -> int:
        """Entries of the layers with this window."""
        return self.entries if window is None else min(window, self.entries)

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens."""
        if length <= self.entries:
            return
        assert length <= self._max_length
        self.entries = min(self._max_length, max(length, 2 * self.entries, _FIRST_ENTRIES))
        for layer, window in enumerate(self._config.windows):
            self._keys[layer] = _grown(self._keys[layer], self.capacity(window))
            self._values[layer] = _grown(self._values[layer], self.capacity(window))
        head_dim, num_kv_heads = self._config.head_dim, self._config.num_kv_heads
        self._flat = [
            (k.view(-1, head_dim), v.view(-1, head_dim)) for k, v in zip(self._keys, self._values, strict=True)
        ]
        for window in self._shares:
            numbers = torch.arange(self.num_slots * num_kv_heads, device=self.device) * self.capacity(window)
            self._base[window] = numbers.view(self.num_slots, num_kv_heads)
        self._regroup()

    def place(self, slots: Sequence[int], counts: Sequence[int]) -> dict[int | None, Places]:
        """Advance each slot by its count of new tokens; say, by window, where a stream of them is stored.

        The stream holds the tokens of the first slot, then those of the second, and so on.
        """
        starts = [self.lengths[slot] for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
        self.reserve(max(self.lengths[slot] for slot in slots))
        self._regroup()
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

    def groups(self, num_rows: int) -> tuple[Group, ...]:
        """The first slots in groups, which last for many steps."""
        groups = self._groups
        if not groups or groups[-1].stop != num_rows or any(self._longest(one) > one.length for one in groups):
            self._regroup()
            cost = _GROUP_COST / (self._config.num_kv_heads * self._config.head_dim)
            reads = [self._mean_read(length) for length in self.lengths[:num_rows]]
            runs = split(reads, cost) if self.device.type == "cpu" else [(0, num_rows)]
            self._groups = tuple(
                Group(*run, min(_blocks(max(self.lengths[slice(*run)])), self.entries)) for run in runs
            )
        return self._groups

    def views(self, group: Group) -> list[tuple[Tensor, Tensor]]:
        """Keys [rows x K, H, C] and values [rows x K, C, H] that a group reads, by layer."""
        if group not in self._views:
            views = []
            for keys, values, window in zip(self._keys, self._values, self._config.windows, strict=True):
                num_read = min(group.length, self.capacity(window))
                k_XCH, v_XCH = (one[group.start : group.stop].flatten(0, 1)[:, :num_read] for one in (keys, values))
                views.append((k_XCH.transpose(1, 2), v_XCH))
            self._views[group] = views
        return self._views[group]

    def listing(self, group: Group, window: int | None) -> Listing:
        """The entries that a group reads in the layers of a window, as lists."""
        key = group, window
        if key not in self._listings:
            self._listings[key] = self._listed(group, window)
        return self._listings[key]

    def _listed(self, group: Group, window: int | None) -> Listing:
        num_read, per_head = (
            min(group.length, self.capacity(window)),
            self._config.num_heads // self._config.num_kv_heads,
        )
        first_XG1 = self._base[window][group.start : group.stop].reshape(-1, 1, 1).expand(-1, per_head, -1)
        entries = (first_XG1 + torch.arange(num_read, device=self.device)).flatten()
        starts = torch.arange(0, len(entries) + 1, num_read, device=self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that torch's CSR matrices are young
            scores = torch.sparse_csr_tensor(
                starts,
                entries,
                torch.zeros(len(entries), device=self.device),
                size=(len(starts) - 1, self.num_slots * self._config.num_kv_heads * self.capacity(window)),
                check_invariants=False,
            )
        return Listing(scores, entries, starts[:-1])

    def flat(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as rows [slots x K x entries, H], which a `Listing` numbers."""
        return self._flat[layer]

    def mask(self, group: Group, window: int | None, positions_B: Tensor) -> Tensor:
        """What is added to the scores [rows x K, 1, C] of a group: 0 where an entry is seen, else -inf."""
        capacity = self.capacity(window)
        entry_C = torch.arange(min(group.length, capacity), device=self.device)
        last_B11 = positions_B[group.start : group.stop].clamp(max=capacity - 1)[:, None, None]
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
        if length < seen and any(window is not None and seen > window for window in self._shares):
            return False
        self.lengths[slot] = length
        self._regroup()
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
        self._regroup()

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
        self._regroup()

    def _regroup(self) -> None:
        self._groups = ()
        self._views.clear()
        self._listings.clear()

    def _longest(self, group: Group) -> int:
        return max(self.lengths[group.start : group.stop])

    def _mean_read(self, length: int) -> float:
        """Entries that a sequence of this length reads, on average over the layers."""
        read = _blocks(length)
        return sum(share * min(read, self.capacity(window)) for window, share in self._shares.items())


def split(reads: Sequence[float], cost: float) -> list[tuple[int, int]]:
    """Cut rows that read so many entries each into runs [start, stop), to make the sum of rows x longest read, plus
    `cost` for each further run, small. Each cut is the best one; the whole need not be.
    """
    lefts = list(accumulate(reads, max))
    rights = list(accumulate(reversed(reads), max))[::-1]
    best, saved = 0, cost
    for cut in range(1, len(reads)):
        gain = (lefts[-1] - lefts[cut - 1]) * cut + (lefts[-1] - rights[cut]) * (len(reads) - cut)
        if gain > saved:
            best, saved = cut, gain
    if not best:
        return [(0, len(reads))]
    after = split(reads[best:], cost)
    return [*split(reads[:best], cost), *((start + best, stop + best) for start, stop in after)]


def _blocks(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _grown(layer: Tensor, entries: int) -> Tensor:
    """The layer with room for more entries.

    A ring that still grows has never wrapped: its entries are where the larger one expects them. Zeros, because a
    weight of 0 times what happens to lie in fresh memory could be NaN.
    """
    have = layer.shape[2]
    if entries <= have:
        return layer
    grown = layer.new_zeros((*layer.shape[:2], entries, layer.shape[3]))
    grown[:, :, :have] = layer
    return grown
