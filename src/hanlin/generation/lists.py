"""What one step of decoding reads on a CPU, as lists of cache entries.

With one new token a row, attention is products of very few rows, and a matrix product spends more on preparing its
operands than on computing. So the scores are a *sampled* product, computed only where a list says, and what is read is
a *bag* of rows with weights: both go through the cache once, at about the speed of the memory. Rows differ in length,
so they are taken by length, and neighbours that are about as long form a part, padded to its own longest for softmax.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from hanlin.models.config import ModelConfig
from hanlin.models.transformer import soft_cap

BLOCK = 32  # lengths are rounded up to this, so that lists last for many steps
# What one more part costs a layer (about 15 microseconds), in numbers of keys that could be read instead.
_PART_COST = 150_000


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop), in the order of the lists, that all read the entries of `length` positions."""

    start: int
    stop: int
    length: int


@dataclass(frozen=True, slots=True)
class _Listing:
    """The lists of all layers with one window. `scores` is a CSR matrix [R = rows x Q, all entries of a layer] whose
    values change from layer to layer, as `weights` do; `entries` are its columns, `starts` where each head's list
    begins; `chunks` say where the scores [rows, Q, C] of each part are.
    """

    scores: Tensor
    weights: Tensor
    entries: Tensor
    starts: Tensor
    chunks: tuple[tuple[slice, tuple[int, int, int]], ...]


class StepLists:
    """Lists of the first `len(lengths)` slots, which have seen so many tokens.

    `first_SK`: by window, where the entries of each slot and key head begin, and how many there are (`capacity`).
    """

    def __init__(
        self,
        config: ModelConfig,
        lengths: Sequence[int],
        *,
        first_SK: Mapping[int | None, Tensor],
        capacity: Mapping[int | None, int],
    ) -> None:
        self.num_rows = len(lengths)
        self._config = config
        self._capacity = capacity
        shares = {window: config.windows.count(window) / config.num_layers for window in first_SK}
        self._order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
        padded = [_blocks(lengths[row]) for row in self._order]
        reads = [sum(share * min(n, capacity[window]) for window, share in shares.items()) for n in padded]
        runs = split(reads, _PART_COST / (config.num_heads * config.head_dim))
        self.parts = tuple(Part(*run, padded[run[0]]) for run in runs)
        in_order = self._order == list(range(len(lengths)))
        self._order_B = torch.tensor(self._order)
        self._taken_B = None if in_order else self._order_B
        self._back_B = None if in_order else self._order_B.argsort()
        self._listings = {window: self._list(window, first_SK[window]) for window in first_SK}

    def cover(self, lengths: Sequence[int]) -> bool:
        """Whether these lengths of the same rows can be read with these lists."""
        return len(lengths) == self.num_rows and all(
            max(lengths[row] for row in self._order[part.start : part.stop]) <= part.length for part in self.parts
        )

    def _list(self, window: int | None, first_SK: Tensor) -> _Listing:
        config, num_heads = self._config, self._config.num_heads
        entries, starts, chunks, begin = [], [], [], 0
        for part in self.parts:
            num_rows, num_read = part.stop - part.start, min(part.length, self._capacity[window])
            first_BK = first_SK[self._order_B[part.start : part.stop]]
            first_BQ = first_BK.repeat_interleave(num_heads // config.num_kv_heads, 1)
            entries.append((first_BQ[:, :, None] + torch.arange(num_read)).flatten())
            size = num_rows * num_heads * num_read
            starts.append(torch.arange(begin, begin + size, num_read))
            chunks.append((slice(begin, begin + size), (num_rows, num_heads, num_read)))
            begin += size
        columns, rows = torch.cat(entries), torch.cat([*starts, torch.tensor([begin])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says that torch's CSR matrices are young
            scores = torch.sparse_csr_tensor(
                rows,
                columns,
                torch.zeros(begin),
                size=(len(rows) - 1, first_SK.numel() * self._capacity[window]),
                check_invariants=False,
            )
        return _Listing(scores, torch.empty(begin), columns, rows[:-1], tuple(chunks))

    def masks(self, window: int | None, positions_B: Tensor) -> list[Tensor]:
        """What is added to the scores of each part, [rows, 1, C]: 0 where an entry is seen, else -inf."""
        last_B11 = positions_B[self._order_B].clamp(max=self._capacity[window] - 1)[:, None, None]
        masks = []
        for part, (_, shape) in zip(self.parts, self._listings[window].chunks, strict=True):
            hidden_B1C = torch.arange(shape[2]) > last_B11[part.start : part.stop]
            masks.append(torch.zeros(hidden_B1C.shape).masked_fill_(hidden_B1C, -torch.inf))
        return masks

    def read(
        self, window: int | None, q_BQH: Tensor, keys_EH: Tensor, values_EH: Tensor, masks: Sequence[Tensor]
    ) -> Tensor:
        """Softmax attention [B, Q x H], in the values' dtype, of fp32 queries over the E entries of a layer."""
        listing = self._listings[window]
        q_BQH = q_BQH if self._taken_B is None else q_BQH[self._taken_B]
        q_RH = q_BQH.reshape(-1, self._config.head_dim)
        scores = listing.scores
        torch.sparse.sampled_addmm(scores, q_RH, keys_EH.T, beta=0.0, alpha=self._config.query_scale, out=scores)
        for (chunk, shape), mask_B1C in zip(listing.chunks, masks, strict=True):
            # Not in place: the next product adds 0 times what stands here, and 0 times -inf is NaN.
            scores_BQC = soft_cap(scores.values()[chunk].view(shape), self._config.attention_cap) + mask_B1C
            torch.softmax(scores_BQC, -1, out=listing.weights[chunk].view(shape))
        flat = listing.weights.to(values_EH.dtype)
        read_RH = F.embedding_bag(listing.entries, values_EH, listing.starts, mode="sum", per_sample_weights=flat)
        read_BX = read_RH.view(self.num_rows, -1)
        return read_BX if self._back_B is None else read_BX[self._back_B]


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
    return -(-length // BLOCK) * BLOCK
