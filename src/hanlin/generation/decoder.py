"""The decoder of `models.transformer` rewritten for inference: same mathematics, few calls, weights laid out for the
machine.

What is surprising:

- `pack` (default where it helps: bf16 on a CPU with oneDNN's bf16 kernels) copies every matrix into oneDNN's blocked
  layout, with q/k/v and gate/up joined. A decode step then reads memory twice as fast, and a row's result is the same
  bit for bit in every batch size. The price is one more copy of the matrices, the head's included (2 bytes a
  parameter); the embedding is always shared. Without packing, weights that already have the compute dtype are shared
  and nothing is copied.
- A packed decoder is a snapshot: it does not see later changes of the model's weights.
- The residual stream, queries and keys stay in fp32, which is both exacter and fewer calls than rounding them each
  time.
- Head dimensions travel in pairs (0, H/2), (1, H/2 + 1), ..., so that a rotation is one complex product. Scores do not
  depend on the order, values are put back before the output projection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hanlin.generation.cache import KeyValueCache, Places
from hanlin.models.attention import SegmentAttention
from hanlin.models.config import ModelConfig
from hanlin.models.layers import Linear, RMSNorm, rotary_frequencies
from hanlin.models.transformer import Block, Transformer, soft_cap
from hanlin.types import Segment

Projection = Callable[[Tensor], Tensor]


class AttendHeads(Protocol):
    """Maps a layer's heads [T, Q + 2 K, H] (queries, keys, values; fp32, paired order, rotated, unscaled) to what is
    read, [T, Q, H].
    """

    def __call__(self, layer: int, heads_TXH: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: Projection
    head_norm: Tensor | None  # [Q + K, H / 2, 2]: the scales of queries and keys
    output: Projection
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection
    mlp_post_norm: Tensor | None


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing helps: bf16 matrices on a CPU for which oneDNN has bf16 kernels."""
    return device.type == "cpu" and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Decoder:
    """Hidden states and logits of flat streams of tokens, for inference only. Use inside `torch.inference_mode()`."""

    def __init__(self, model: Transformer, *, dtype: torch.dtype, pack: bool) -> None:
        config = model.config
        self.config = config
        self.dtype = dtype
        self.device = model.device
        # On a CPU fp32 keys make the fastest and the exactest scores; elsewhere memory counts.
        self.cache_dtype = torch.float32 if self.device.type == "cpu" else dtype
        self._embedding = model.embed.weight.detach()
        self._head = _projection([model.head_weight], [None], dtype, pack)
        self._norm = _scale(model.norm)
        self._eps = torch.tensor(config.norm_eps, device=self.device)
        self._layers = [_layer(block, dtype, pack) for block in model.blocks if isinstance(block, Block)]
        rope = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling).to(self.device)
        local = rope
        if config.local_rope_theta is not None:
            local = rotary_frequencies(config.head_dim, config.local_rope_theta, None).to(self.device)
        self._frequencies: dict[int | None, Tensor] = {w: rope if w is None else local for w in config.windows}

    def new_cache(self, *, num_slots: int, max_length: int) -> KeyValueCache:
        return KeyValueCache(
            self.config, num_slots=num_slots, max_length=max_length, dtype=self.cache_dtype, device=self.device
        )

    def prefill(self, cache: KeyValueCache, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] after each prompt, computed as one packed stream and stored in free slots."""
        counts = [len(prompt) for prompt in prompts]
        segments, start = [], 0
        for count in counts:
            segments.append(Segment(start, count))
            start += count
        attend = _PrefillAttention(self, cache, cache.place(slots, counts), segments)
        tokens_T = torch.tensor([id for prompt in prompts for id in prompt], device=self.device)
        positions_T = torch.cat([torch.arange(count, device=self.device) for count in counts])
        last_B = torch.tensor([segment.start + segment.length - 1 for segment in segments], device=self.device)
        return self.head(self.hidden(tokens_T, positions_T, attend)[last_B])

    def step(self, cache: KeyValueCache, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token in each of the first B slots."""
        num_rows = len(tokens)
        positions_B = torch.tensor(cache.lengths[:num_rows], device=self.device)
        attend = _StepAttention(self.config, cache, num_rows, cache.place(range(num_rows), [1] * num_rows))
        return self.head(self.hidden(torch.tensor(tokens, device=self.device), positions_B, attend))

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, attend: AttendHeads) -> Tensor:
        """Final normed hidden states [T, D] in the compute dtype."""
        config, dtype, eps = self.config, self.dtype, self._eps
        x_TD = self._embedding[tokens_T].float()
        if config.scaled_embedding:
            x_TD = x_TD * torch.tensor(config.width**0.5, dtype=dtype).item()
        turns = {window: _turns(positions_T, f) for window, f in self._frequencies.items()}
        for number, layer in enumerate(self._layers):
            normed_TD = _rms_norm(x_TD, layer.attention_norm, eps).to(dtype)
            heads_TXH = self._heads(layer, layer.query_key_value(normed_TD), turns[config.windows[number]])
            read_TD = layer.output(_unpaired(attend(number, heads_TXH), dtype))
            if layer.attention_post_norm is not None:
                read_TD = _rms_norm(read_TD.float(), layer.attention_post_norm, eps)
            x_TD.add_(read_TD)
            made_TD = layer.down(self._active(layer.gate_up(_rms_norm(x_TD, layer.mlp_norm, eps).to(dtype))))
            if layer.mlp_post_norm is not None:
                made_TD = _rms_norm(made_TD.float(), layer.mlp_post_norm, eps)
            x_TD.add_(made_TD)
        return _rms_norm(x_TD, self._norm, eps).to(dtype)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in fp32, as `Transformer.head` gives them: rounded to the compute dtype first, soft-cap
        applied.
        """
        return soft_cap(self._head(hidden_ND).float(), self.config.logit_cap)

    def _heads(self, layer: _Layer, projected_TX: Tensor, turns_T1P: Tensor) -> Tensor:
        """All heads, normed where the family does so, paired and rotated: [T, Q + 2 K, H] in fp32."""
        config = self.config
        length, pairs, rotated = len(projected_TX), config.head_dim // 2, config.num_heads + config.num_kv_heads
        halves_TX2P = projected_TX.view(length, -1, 2, pairs)
        heads_TXP2 = torch.empty(length, halves_TX2P.shape[1], pairs, 2, device=self.device)
        if layer.head_norm is None:
            heads_TXP2.copy_(halves_TX2P.transpose(2, 3))
        else:
            raw_TXH = projected_TX.view(length, -1, config.head_dim)[:, :rotated].float()
            normed_TX2P = F.rms_norm(raw_TXH, (config.head_dim,), None, config.norm_eps).view(length, rotated, 2, pairs)
            torch.mul(normed_TX2P.transpose(2, 3), layer.head_norm, out=heads_TXP2[:, :rotated])
            heads_TXP2[:, rotated:] = halves_TX2P[:, rotated:].transpose(2, 3)
        torch.view_as_complex(heads_TXP2)[:, :rotated].mul_(turns_T1P)
        return heads_TXP2.view(length, -1, config.head_dim)

    def _active(self, joined_TX: Tensor) -> Tensor:
        gate_TF, up_TF = joined_TX.chunk(2, dim=-1)
        active_TF = F.silu(gate_TF) if self.config.activation == "silu" else F.gelu(gate_TF, approximate="tanh")
        return active_TF.mul_(up_TF)


class _PrefillAttention:
    """Prompts see only themselves; their keys and values go to the cache on the way."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KeyValueCache,
        places: dict[int | None, Places],
        segments: Sequence[Segment],
    ) -> None:
        self._config, self._dtype = decoder.config, decoder.dtype
        self._cache, self._places = cache, places
        self._attend = SegmentAttention(decoder.config, segments, decoder.device)

    def __call__(self, layer: int, heads_TXH: Tensor) -> Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        self._cache.store(layer, heads_TXH[:, num_heads:], self._places[self._config.windows[layer]])
        q_TQH, k_TKH, v_TKH = heads_TXH.to(self._dtype).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        return self._attend(layer, q_TQH, k_TKH, v_TKH)


class _StepAttention:
    """One new token in each row reads what its slot has stored. The query heads of one key head are rows of one small
    matrix product.
    """

    def __init__(
        self, config: ModelConfig, cache: KeyValueCache, num_rows: int, places: dict[int | None, Places]
    ) -> None:
        self._config, self._cache, self._num_rows, self._places = config, cache, num_rows, places
        self._used: dict[int | None, int] = {}
        self._masks: dict[int | None, Tensor] = {}
        for window, place in places.items():
            capacity, device = cache.capacity(window), place.rows.device
            used = [min(length, capacity) for length in cache.lengths[:num_rows]]
            self._used[window] = max(used)
            hidden_BC = torch.arange(max(used), device=device) >= torch.tensor(used, device=device)[:, None]
            mask_BC = torch.zeros(hidden_BC.shape, device=device).masked_fill_(hidden_BC, -torch.inf)
            self._masks[window] = mask_BC.repeat_interleave(config.num_kv_heads, 0)[:, None]

    def __call__(self, layer: int, heads_BXH: Tensor) -> Tensor:
        config, window = self._config, self._config.windows[layer]
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        self._cache.store(layer, heads_BXH[:, num_heads:], self._places[window])
        keys_XCH, values_XCH = self._cache.read(layer, self._num_rows, self._used[window])
        q_XGH = heads_BXH[:, :num_heads].reshape(-1, num_heads // num_kv_heads, config.head_dim).to(keys_XCH.dtype)
        keys_XHC = keys_XCH.transpose(1, 2)
        mask_X1C = self._masks[window]
        if config.attention_cap is None and keys_XCH.dtype == torch.float32:
            scores_XGC = torch.baddbmm(mask_X1C, q_XGH, keys_XHC, alpha=config.query_scale)
        else:
            scores_XGC = torch.bmm(q_XGH, keys_XHC).float().mul_(config.query_scale)
            scores_XGC = soft_cap(scores_XGC, config.attention_cap) + mask_X1C
        weights_XGC = scores_XGC.softmax(-1).to(values_XCH.dtype)
        return torch.bmm(weights_XGC, values_XCH).view(self._num_rows, num_heads, config.head_dim)


def _rms_norm(x_TD: Tensor, scale_D: Tensor, eps: Tensor) -> Tensor:
    """`F.rms_norm` in fp32, which on a CPU is seven calls."""
    norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    return (x_TD * torch.addcmul(eps, norm_T1, norm_T1, value=1 / x_TD.shape[-1]).rsqrt_()).mul_(scale_D)


def _turns(positions_T: Tensor, frequencies_P: Tensor) -> Tensor:
    """The complex numbers [T, 1, H / 2] that rotate each pair."""
    angles_TP = positions_T.float()[:, None] * frequencies_P
    return torch.complex(angles_TP.cos(), angles_TP.sin())[:, None]


def _unpaired(read_TQH: Tensor, dtype: torch.dtype) -> Tensor:
    """Heads in the model's own order, side by side: [T, Q x H]."""
    length, num_heads, head_dim = read_TQH.shape
    out_TX = torch.empty(length, num_heads * head_dim, dtype=dtype, device=read_TQH.device)
    out_TX.view(length, num_heads, 2, -1).copy_(read_TQH.reshape(length, num_heads, -1, 2).transpose(2, 3))
    return out_TX


def _layer(block: Block, dtype: torch.dtype, pack: bool) -> _Layer:
    def joined(*maps: Linear) -> Projection:
        return _projection([one.weight for one in maps], [one.bias for one in maps], dtype, pack)

    attention, mlp = block.attention, block.mlp
    head_norm = None
    if attention.query_norm is not None and attention.key_norm is not None:
        head_dim = attention.head_dim
        num_heads, num_kv_heads = (len(one.weight) // head_dim for one in (attention.query, attention.key))
        scales = [_scale(attention.query_norm)] * num_heads + [_scale(attention.key_norm)] * num_kv_heads
        head_norm = torch.stack(scales).view(-1, 2, head_dim // 2).transpose(1, 2).contiguous()
    return _Layer(
        attention_norm=_scale(block.attention_norm),
        query_key_value=joined(attention.query, attention.key, attention.value),
        head_norm=head_norm,
        output=joined(attention.output),
        attention_post_norm=None if block.attention_post_norm is None else _scale(block.attention_post_norm),
        mlp_norm=_scale(block.mlp_norm),
        gate_up=joined(mlp.gate, mlp.up),
        down=joined(mlp.down),
        mlp_post_norm=None if block.mlp_post_norm is None else _scale(block.mlp_post_norm),
    )


def _scale(norm: RMSNorm) -> Tensor:
    return norm.weight.detach().float() + norm.offset


def _projection(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype, pack: bool
) -> Projection:
    """A map to the results of several matrices [out, in] side by side."""
    parts = [weight.detach().to(dtype) for weight in weights]
    bias_parts = [None if bias is None else bias.detach().to(dtype) for bias in biases]
    if pack:
        given = [bias for bias in bias_parts if bias is not None]
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.cat(parts) if len(parts) > 1 else parts[0], 8)
        bias = torch.cat(given) if given else None
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x, packed, bias, "none", [], "")
    if len(parts) == 1:
        return lambda x: F.linear(x, parts[0], bias_parts[0])
    return lambda x: torch.cat([F.linear(x, w, b) for w, b in zip(parts, bias_parts, strict=True)], dim=-1)
