"""How the tokens of a pass read the cache: whole prompts, the end of a prompt whose start is cached, or one new token
in each of many slots.

Queries and keys come as `heads_TXH` [T, Q + K, H], fp32, paired and rotated, unscaled: a buffer that is filled anew for
each layer, so an `Attention` is given it beforehand and makes its views once. Values come with each layer, in the
compute dtype. What is read goes back flat, [T, Q x H], in the compute dtype too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hanlin.generation.cache import Extent, KeyValueCache
from hanlin.models.backends import segment_attention
from hanlin.models.config import ModelConfig
from hanlin.models.tiled import make_tiling, tiled_attention
from hanlin.models.transformer import soft_cap
from hanlin.types import Segment

AttendHeads = Callable[[int, Tensor], Tensor]  # layer, v_TKH -> [T, Q x H]
Attention = Callable[[Tensor], AttendHeads]  # heads_TXH -> what to call for each layer


def prompt_attention(
    config: ModelConfig,
    cache: KeyValueCache,
    slots: Sequence[int],
    segments: Sequence[Segment],
    positions_T: Tensor,
    *,
    dtype: torch.dtype,
) -> Attention:
    """Prompts see only themselves; their keys and values go to free slots on the way."""
    places = cache.place(slots, [segment.length for segment in segments])
    # FlexAttention, which capped scores would take on CUDA, compiles for the shapes it meets: not for one-off prompts.
    backend = "auto" if config.attention_cap is None else "segments"
    attention = segment_attention(config, segments, positions_T, cache.device, dtype=dtype, backend=backend)

    def prepare(heads_TXH: Tensor) -> AttendHeads:
        q_TQH, k_TKH = heads_TXH[:, : config.num_heads], heads_TXH[:, config.num_heads :]

        def attend(layer: int, v_TKH: Tensor) -> Tensor:
            cache.store(layer, k_TKH, v_TKH, places[config.windows[layer]])
            return attention(layer, q_TQH.to(dtype), k_TKH.to(dtype), v_TKH).flatten(1)

        return attend

    return prepare


def suffix_attention(config: ModelConfig, cache: KeyValueCache, slot: int, length: int) -> Attention:
    """The next `length` tokens of one slot see what it holds, then themselves."""
    start = cache.lengths[slot]
    places = cache.place([slot], [length])
    tilings = {
        window: make_tiling(
            length=length,
            num_keys=min(start, cache.capacity(window)) + length,
            group=config.num_heads // config.num_kv_heads,
            window=window,
            device=cache.device,
        )
        for window in places
    }

    def prepare(heads_TXH: Tensor) -> AttendHeads:
        q_TQH, k_TKH = heads_TXH[:, : config.num_heads], heads_TXH[:, config.num_heads :]

        def attend(layer: int, v_TKH: Tensor) -> Tensor:
            window, dtype = config.windows[layer], v_TKH.dtype
            old_k_CKH, old_v_CKH = cache.past(layer, slot, start)  # before a ring is written to, and forgets
            k_CKH, v_CKH = torch.cat((old_k_CKH, k_TKH)).to(dtype), torch.cat((old_v_CKH, v_TKH))
            cache.store(layer, k_TKH, v_TKH, places[window])
            read_TQH = tiled_attention(
                q_TQH.to(dtype), k_CKH, v_CKH, tilings[window], scale=config.query_scale, cap=config.attention_cap
            )
            return read_TQH.flatten(1)

        return attend

    return prepare


def list_attention(config: ModelConfig, cache: KeyValueCache, positions_B: Tensor) -> Attention:
    """One new token in each of the first slots reads what its slot holds, on a CPU."""
    windows = set(config.windows)
    places = {window: cache.place_step(window, positions_B) for window in windows}
    lists = cache.lists(len(positions_B))
    masks = {window: lists.masks(window, positions_B) for window in windows}

    def prepare(heads_BXH: Tensor) -> AttendHeads:
        q_BQH, k_BKH = heads_BXH[:, : config.num_heads], heads_BXH[:, config.num_heads :]

        def attend(layer: int, v_BKH: Tensor) -> Tensor:
            window = config.windows[layer]
            cache.store(layer, k_BKH, v_BKH, places[window])
            return lists.read(window, q_BQH, *cache.flat(layer), masks[window])

        return attend

    return prepare


def step_attention(config: ModelConfig, cache: KeyValueCache, positions_B: Tensor, extent: Extent) -> Attention:
    """One new token in each of the first slots reads what its slot holds, in tensors of fixed sizes (for CUDA graphs).

    The query heads that share a key head are the rows of one small matrix product.
    """
    places = {window: cache.place_step(window, positions_B) for window in set(config.windows)}
    masks = {window: cache.mask(extent, window, positions_B) for window in places}
    views = cache.views(extent)
    per_key_head = config.num_heads // config.num_kv_heads

    def prepare(heads_BXH: Tensor) -> AttendHeads:
        q_BQH, k_BKH = heads_BXH[:, : config.num_heads], heads_BXH[:, config.num_heads :]

        def attend(layer: int, v_BKH: Tensor) -> Tensor:
            window = config.windows[layer]
            cache.store(layer, k_BKH, v_BKH, places[window])
            q_XGH = q_BQH.reshape(-1, per_key_head, config.head_dim)
            return _read(q_XGH, *views[layer], masks[window], config).view(len(positions_B), -1)

        return attend

    return prepare


def _read(q_XGH: Tensor, k_XHC: Tensor, v_XCH: Tensor, mask_X1C: Tensor, config: ModelConfig) -> Tensor:
    """Softmax attention [X, G, H] in the values' dtype, for X = rows x K."""
    if config.attention_cap is None and k_XHC.dtype == torch.float32:
        scores_XGC = torch.baddbmm(mask_X1C, q_XGH, k_XHC, alpha=config.query_scale)
    else:
        scores_XGC = torch.bmm(q_XGH.to(k_XHC.dtype), k_XHC).float().mul_(config.query_scale)
        scores_XGC = soft_cap(scores_XGC, config.attention_cap) + mask_X1C
    return torch.bmm(scores_XGC.softmax(-1).to(v_XCH.dtype), v_XCH)
