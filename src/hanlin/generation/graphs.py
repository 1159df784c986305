"""CUDA graphs of decoding steps: a step of a small model is hundreds of kernels of some microseconds, and starting them
one by one costs more than running them.

A graph replays what was captured, on the same addresses and in the same sizes. So there is one for each bucket of
(rows, entries read): a step is padded to the next bucket with rows that feed token 0 at position 0 to free slots, where
nobody looks, and the logits of the padding are cut off. When the cache grows its tensors move, and the graphs go.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hanlin.generation.cache import Extent, KeyValueCache
from hanlin.generation.decoder import Decoder

_FEWEST_ENTRIES = 256
_WARM_UPS = 2  # torch's advice: libraries allocate and choose kernels in their first calls, which a graph cannot hold


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    logits_BV: Tensor


class GraphedSteps:
    """`Decoder.step` for one cache on CUDA, from graphs that are captured when first needed."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        self._decoder = decoder
        self._cache = cache
        self._tokens_B, self._positions_B = torch.zeros(2, cache.num_slots, dtype=torch.int64, device=cache.device)
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._entries = 0  # of the cache that the graphs know
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token in each of the first B slots; they are overwritten by the next call."""
        cache, num_rows = self._cache, len(tokens)
        positions = cache.advance(num_rows)
        if cache.entries != self._entries:
            self._captured.clear()
            self._entries = cache.entries
        bucket = row_bucket(num_rows, cache.num_slots), entry_bucket(max(positions) + 1, cache.entries)
        padding = [0] * (bucket[0] - num_rows)
        given_2B = torch.tensor([[*tokens, *padding], [*positions, *padding]], device=cache.device)
        self._tokens_B[: bucket[0]], self._positions_B[: bucket[0]] = given_2B[0], given_2B[1]
        with torch.cuda.device(cache.device):
            if bucket not in self._captured:
                self._captured[bucket] = self._capture(*bucket)
            found = self._captured[bucket]
            found.graph.replay()
        return found.logits_BV[:num_rows]

    def _capture(self, num_rows: int, num_entries: int) -> _Captured:
        """Capture a step of these sizes. What it stores on the way is what the step itself will store again."""
        extent = Extent(num_rows, num_entries)

        def run() -> Tensor:
            tokens_B, positions_B = self._tokens_B[:num_rows], self._positions_B[:num_rows]
            return self._decoder.step_logits(self._cache, tokens_B, positions_B, extent)

        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits_BV = run()
        return _Captured(graph, logits_BV)


def row_bucket(num_rows: int, num_slots: int) -> int:
    """Rows of the graph for a batch: 1, 2, 4, 8, then multiples of 8; at most the slots that there are."""
    bucket = 1 << (num_rows - 1).bit_length() if num_rows <= 8 else -(-num_rows // 8) * 8
    return min(bucket, num_slots)


def entry_bucket(length: int, entries: int) -> int:
    """Entries that the graph reads for up to `length` tokens a row: powers of two from 256; at most `entries`."""
    return min(max(_FEWEST_ENTRIES, 1 << (length - 1).bit_length()), entries)
