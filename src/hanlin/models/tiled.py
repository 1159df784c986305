"""Causal attention in tiles of matrix products, with its own backward pass: what a CPU computes fastest.

torch's CPU kernels for `scaled_dot_product_attention` reach a fifth of the machine's bf16 matmul rate, and less with a
mask. Here a tile of queries meets all keys that any of them sees in one matrix product; only a tile's edges are masked,
softmax runs in fp32 while the tile is in the cache, and the backward pass computes the weights again. Memory beside
inputs and outputs is one tile. Scores are products of fp32 numbers: rounded to bf16, a score of 10 would be off by 2%.

Shapes repeat: queries and keys are padded to whole tiles, because oneDNN compiles a kernel for every new shape.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TILE_ROWS = 384  # of a matrix product: queries of a tile x query heads of a key head, about


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries [first, first + size) of a run against its keys [low, high); `edges` are what is added to some columns of
    the scores, [size x G, columns]: 0 where a key is seen, else -inf.
    """

    first: int
    low: int
    high: int
    edges: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles of a run of `length` queries at the end of `num_keys` keys, each G = `group` query heads a key head."""

    length: int
    num_keys: int
    group: int
    size: int
    tiles: tuple[Tile, ...]

    @property
    def padded_length(self) -> int:
        return len(self.tiles) * self.size

    @property
    def padded_keys(self) -> int:
        return self.tiles[-1].high


def make_tiling(*, length: int, num_keys: int, group: int, window: int | None, device: torch.device) -> Tiling:
    """Plan a run: query i is at position p = `num_keys - length + i` and sees the keys p - window < key <= p."""
    size = max(32, 1 << (_TILE_ROWS // group).bit_length() - 1)
    if num_keys == length <= size * 3 // 2:  # one tile, no larger than it must be
        size = -(-length // 32) * 32
    before = num_keys - length
    tiles = []
    masks: dict[tuple[int, int, int], Tensor] = {}

    def edge(shift: int, columns: int, is_low: bool) -> Tensor:
        """Row r sees column c iff c <= r + shift; at the low edge iff c > r + shift."""
        key = (shift, columns, is_low)
        if key not in masks:
            row_R1, column_C = torch.arange(size, device=device)[:, None], torch.arange(columns, device=device)
            hidden_RC = (column_C > row_R1 + shift) != is_low
            mask_RC = torch.zeros(size, columns, device=device).masked_fill_(hidden_RC, -torch.inf)
            masks[key] = mask_RC.repeat_interleave(group, 0)
        return masks[key]

    for first in range(0, length, size):
        position = before + first  # of the tile's first query
        high = -(-(position + size) // size) * size
        low = 0 if window is None else max(0, (position - window + 1) // size * size)
        edges = [(position - low, edge(0, high - position, False))]
        if window is not None and position + size - window > 0:
            edges.append((0, edge(position - window - low, position + size - window - low, True)))
        tiles.append(Tile(first, low, high, tuple(edges)))
    return Tiling(length, num_keys, group, size, tuple(tiles))


def tiled_attention(
    q_LQH: Tensor, k_CKH: Tensor, v_CKH: Tensor, tiling: Tiling, *, scale: float, cap: float | None
) -> Tensor:
    """Attention [L, Q, H] of the last L positions over C keys; scores are `cap * tanh(score / cap)` with a cap."""
    out_LQH: Tensor = _TiledAttention.apply(q_LQH, k_CKH, v_CKH, tiling, scale, cap)  # pyright: ignore
    return out_LQH


class _TiledAttention(torch.autograd.Function):
    """M = rows of one tile's products: queries x G, a query's heads side by side."""

    @staticmethod
    def forward(
        ctx: Any, q_LQH: Tensor, k_CKH: Tensor, v_CKH: Tensor, tiling: Tiling, scale: float, cap: float | None
    ) -> Tensor:
        ctx.save_for_backward(q_LQH, k_CKH, v_CKH)
        ctx.tiling, ctx.scale, ctx.cap = tiling, scale, cap
        q_KMH = _rows(q_LQH.float() * scale, k_CKH.shape[1], tiling)
        k_KCH, v_KCH = _keys(k_CKH.float(), tiling), _keys(v_CKH, tiling)
        out_KMH = torch.empty(q_KMH.shape, dtype=q_LQH.dtype, device=q_LQH.device)
        room = _Room(q_KMH, tiling)
        for tile in tiling.tiles:
            rows = _tile_rows(tile, tiling)
            weights_KMC = _weights(q_KMH[:, rows], k_KCH, tile, cap, room)
            torch.bmm(room.rounded(weights_KMC, v_KCH.dtype), v_KCH[:, tile.low : tile.high], out=out_KMH[:, rows])
        return _unrows(out_KMH, tiling)

    @staticmethod
    def backward(ctx: Any, grad_LQH: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q_LQH, k_CKH, v_CKH = ctx.saved_tensors
        tiling, scale, cap = ctx.tiling, ctx.scale, ctx.cap
        dtype, num_kv_heads = q_LQH.dtype, k_CKH.shape[1]
        wide_KMH = _rows(q_LQH.float() * scale, num_kv_heads, tiling)
        q_KMH = wide_KMH.to(dtype)
        grad_KMH = _rows(grad_LQH, num_kv_heads, tiling)
        k_KCH, v_KCH = _keys(k_CKH, tiling), _keys(v_CKH, tiling)
        wide_KCH = k_KCH.float()
        grad_q_KMH = torch.empty_like(q_KMH)
        grad_k_KCH, grad_v_KCH = torch.zeros_like(wide_KCH), torch.zeros_like(wide_KCH)
        room = _Room(wide_KMH, tiling)
        for tile in tiling.tiles:
            rows, keys = _tile_rows(tile, tiling), slice(tile.low, tile.high)
            weights_KMC = _weights(wide_KMH[:, rows], wide_KCH, tile, cap, room)
            weights_KMC = room.rounded(weights_KMC, dtype)
            grad_v_KCH[:, keys] += weights_KMC.transpose(1, 2) @ grad_KMH[:, rows]
            inner_KMC = torch.bmm(grad_KMH[:, rows], v_KCH[:, keys].transpose(1, 2))
            inner_KMC = torch.ops.aten._softmax_backward_data(inner_KMC, weights_KMC, -1, dtype)
            if cap is not None:
                inner_KMC = (inner_KMC * room.slope).to(dtype)
            torch.bmm(inner_KMC, k_KCH[:, keys], out=grad_q_KMH[:, rows])
            grad_k_KCH[:, keys] += inner_KMC.transpose(1, 2) @ q_KMH[:, rows]
        grads = (grad[:, : tiling.num_keys].to(dtype).transpose(0, 1) for grad in (grad_k_KCH, grad_v_KCH))
        return _unrows(grad_q_KMH.mul_(scale), tiling), *grads, None, None, None


class _Room:
    """Buffers of one tile, used by all tiles of a run in turn."""

    def __init__(self, q_KMH: Tensor, tiling: Tiling) -> None:
        most = max(tile.high - tile.low for tile in tiling.tiles)
        self._size = (len(q_KMH), tiling.size * tiling.group)
        self._scores = q_KMH.new_empty(self._size[0] * self._size[1] * most)
        self._rounded: Tensor | None = None
        self.slope: Tensor | float = 1.0

    def scores(self, num_keys: int) -> Tensor:
        shape = (*self._size, num_keys)
        return self._scores[: self._size[0] * self._size[1] * num_keys].view(shape)

    def rounded(self, x_KMC: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in the dtype that products run in."""
        if dtype == x_KMC.dtype:
            return x_KMC
        if self._rounded is None:
            self._rounded = torch.empty_like(self._scores, dtype=dtype)
        return self._rounded[: x_KMC.numel()].view(x_KMC.shape).copy_(x_KMC)


def _weights(q_KMH: Tensor, k_KCH: Tensor, tile: Tile, cap: float | None, room: _Room) -> Tensor:
    """Softmax weights of one tile, fp32; with a cap, `room.slope` becomes its derivative."""
    scores_KMC = room.scores(tile.high - tile.low)
    torch.bmm(q_KMH, k_KCH[:, tile.low : tile.high].transpose(1, 2), out=scores_KMC)
    if cap is not None:
        scores_KMC.div_(cap).tanh_()
        room.slope = 1 - scores_KMC.square()
        scores_KMC.mul_(cap)
    for start, mask_MC in tile.edges:
        scores_KMC[:, :, start : start + mask_MC.shape[1]].add_(mask_MC)
    return torch.softmax(scores_KMC, -1, out=scores_KMC)


def _tile_rows(tile: Tile, tiling: Tiling) -> slice:
    return slice(tile.first * tiling.group, (tile.first + tiling.size) * tiling.group)


def _rows(x_LQH: Tensor, num_kv_heads: int, tiling: Tiling) -> Tensor:
    """[L, Q, H] as [K, L x G, H], zeros behind."""
    length, _, head_dim = x_LQH.shape
    rows_KMH = x_LQH.new_empty(num_kv_heads, tiling.padded_length * tiling.group, head_dim)
    used = length * tiling.group
    rows_KMH[:, used:] = 0
    rows_KMH[:, :used].view(num_kv_heads, length, tiling.group, head_dim).copy_(
        x_LQH.view(length, num_kv_heads, tiling.group, head_dim).transpose(0, 1)
    )
    return rows_KMH


def _unrows(x_KMH: Tensor, tiling: Tiling) -> Tensor:
    num_kv_heads, _, head_dim = x_KMH.shape
    x_KLGH = x_KMH.view(num_kv_heads, -1, tiling.group, head_dim)[:, : tiling.length]
    return x_KLGH.transpose(0, 1).reshape(tiling.length, -1, head_dim)


def _keys(x_CKH: Tensor, tiling: Tiling) -> Tensor:
    """[C, K, H] as [K, C, H], zeros behind."""
    keys_KCH = x_CKH.new_empty(x_CKH.shape[1], tiling.padded_keys, x_CKH.shape[2])
    keys_KCH[:, len(x_CKH) :] = 0
    keys_KCH[:, : len(x_CKH)] = x_CKH.transpose(0, 1)
    return keys_KCH
