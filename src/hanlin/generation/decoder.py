"""The decoder of `models.transformer` rewritten for inference: same mathematics, few calls, weights laid out for the
machine.

What is surprising:

- `pack` (default where it helps: bf16 on a CPU with oneDNN's bf16 kernels) copies every matrix into oneDNN's blocked
  layout, with q/k/v and gate/up joined. A step then reads its weights in half the time, and a row's result is the same
  bit for bit in every batch size. The price is one more copy of the matrices, the head's included (2 bytes a
  parameter); the embedding is always shared. Without packing, weights that already have the compute dtype are shared.
- A packed decoder is a snapshot: it does not see later changes of the model's weights.
- The residual stream, queries and keys stay in fp32, which is both exacter and fewer calls than rounding them. Values
  are cached as they come, in the compute dtype: nothing is lost, and a bf16 product of matrices does not depend on
  what others in the batch read, which MKL's fp32 one does.
- Head dimensions of queries and keys travel in pairs (0, H/2), (1, H/2 + 1), ..., so that a rotation is one complex
  product. Scores do not depend on the order. Packed matrices give them in pairs; otherwise they are paired as they
  come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hanlin.generation.attention import Attention, list_attention, prompt_attention, step_attention, suffix_attention
from hanlin.generation.cache import Extent, KeyValueCache
from hanlin.models.config import ModelConfig
from hanlin.models.layers import FeedForward, RMSNorm, rotary_frequencies
from hanlin.models.transformer import Block, Transformer, soft_cap
from hanlin.types import Segment

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: Projection
    head_norm: Tensor | None  # [Q + K, H], in the order of the queries and keys that come: their scales
    output: Projection
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    gated: Projection
    down: Projection
    mlp_post_norm: Tensor | None


class _Scratch:
    """What every layer of one pass writes anew, and views of it: making them once saves a third of the calls."""

    def __init__(
        self, config: ModelConfig, length: int, dtype: torch.dtype, device: torch.device, come_paired: bool
    ) -> None:
        num_turned, pairs = config.num_heads + config.num_kv_heads, config.head_dim // 2
        heads_TXP2 = torch.empty(length, num_turned, pairs, 2, device=device)
        self.heads_TXH = heads_TXP2.flatten(2)  # queries, keys
        self.as_they_come = self.heads_TXH if come_paired else heads_TXP2.transpose(2, 3)  # [T, X, 2, P]
        self.turned_TXP = torch.view_as_complex(heads_TXP2)
        self.normed_TD = torch.empty(length, config.width, dtype=dtype, device=device)


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
        self._packed = pack
        # On a CPU fp32 keys make the fastest and the exactest scores; elsewhere memory counts.
        self.key_dtype = torch.float32 if self.device.type == "cpu" else dtype
        self._embedding = model.embed.weight.detach()
        self._head = _projection([model.head_weight], [None], dtype, pack)
        self._norm = _scale(model.norm)
        self._floor, self._head_floor = (
            torch.tensor((size * config.norm_eps) ** 0.5, device=self.device)
            for size in (config.width, config.head_dim)
        )
        self._layers = [_layer(block, dtype, pack) for block in model.blocks if isinstance(block, Block)]
        rope = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling).to(self.device)
        local = rope
        if config.local_rope_theta is not None:
            local = rotary_frequencies(config.head_dim, config.local_rope_theta, None).to(self.device)
        self._frequencies: dict[int | None, Tensor] = {w: rope if w is None else local for w in config.windows}

    def new_cache(self, *, num_slots: int, max_length: int) -> KeyValueCache:
        """An empty cache that this decoder can fill."""
        return KeyValueCache(
            self.config,
            num_slots=num_slots,
            max_length=max_length,
            key_dtype=self.key_dtype,
            value_dtype=self.dtype,
            device=self.device,
        )

    def prefill(self, cache: KeyValueCache, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] after each prompt, computed as one packed stream; the slots then hold the prompts alone."""
        segments: list[Segment] = []
        for slot, prompt in zip(slots, prompts, strict=True):
            cache.clear(slot)
            start = segments[-1].start + segments[-1].length if segments else 0
            segments.append(Segment(start, len(prompt)))
        tokens_T = torch.tensor([id for prompt in prompts for id in prompt], device=self.device)
        positions_T = torch.cat([torch.arange(segment.length, device=self.device) for segment in segments])
        attention = prompt_attention(self.config, cache, slots, segments, positions_T, dtype=self.dtype)
        last_B = torch.tensor([segment.start + segment.length - 1 for segment in segments], device=self.device)
        return self.head(self.hidden(tokens_T, positions_T, attention)[last_B])

    def extend(self, cache: KeyValueCache, slot: int, ids: Sequence[int]) -> Tensor:
        """Logits [1, V] after further tokens of one slot, which holds some already."""
        start = cache.lengths[slot]
        attention = suffix_attention(self.config, cache, slot, len(ids))
        positions_T = torch.arange(start, start + len(ids), device=self.device)
        return self.head(self.hidden(torch.tensor(ids, device=self.device), positions_T, attention)[-1:])

    def step(self, cache: KeyValueCache, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token in each of the first B slots."""
        positions = cache.advance(len(tokens))
        tokens_B, positions_B = (torch.tensor(numbers, device=self.device) for numbers in (tokens, positions))
        if self.device.type == "cpu":
            return self.head(self.hidden(tokens_B, positions_B, list_attention(self.config, cache, positions_B)))
        return self.step_logits(cache, tokens_B, positions_B, Extent(len(tokens), max(positions) + 1))

    def step_logits(self, cache: KeyValueCache, tokens_B: Tensor, positions_B: Tensor, extent: Extent) -> Tensor:
        """The part of a step that runs on the device, reading `extent`: a function of two tensors."""
        attention = step_attention(self.config, cache, positions_B, extent)
        return self.head(self.hidden(tokens_B, positions_B, attention))

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """Final normed hidden states [T, D] in the compute dtype."""
        config = self.config
        scratch = _Scratch(config, len(tokens_T), self.dtype, self.device, self._packed)
        x_TD = self._embedding[tokens_T].float()
        if config.scaled_embedding:
            x_TD = x_TD * torch.tensor(config.width**0.5, dtype=self.dtype).item()
        turns = {window: _turns(positions_T, f) for window, f in self._frequencies.items()}
        attend = attention(scratch.heads_TXH)
        for number, layer in enumerate(self._layers):
            projected_TX = layer.query_key_value(self._normed(x_TD, layer.attention_norm, scratch.normed_TD))
            v_TKH = self._fill_heads(layer, projected_TX, turns[config.windows[number]], scratch)
            read_TD = layer.output(attend(number, v_TKH))
            if layer.attention_post_norm is not None:
                read_TD = self._normed(read_TD, layer.attention_post_norm)
            x_TD.add_(read_TD)
            made_TD = layer.down(layer.gated(self._normed(x_TD, layer.mlp_norm, scratch.normed_TD)))
            if layer.mlp_post_norm is not None:
                made_TD = self._normed(made_TD, layer.mlp_post_norm)
            x_TD.add_(made_TD)
        return self._normed(x_TD, self._norm, scratch.normed_TD)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in fp32, as `Transformer.head` gives them: rounded to the compute dtype, then soft-capped."""
        return soft_cap(self._head(hidden_ND).float(), self.config.logit_cap)

    def _fill_heads(self, layer: _Layer, projected_TX: Tensor, turns_T1P: Tensor, scratch: _Scratch) -> Tensor:
        """Write queries and keys, normed where the family does so, paired and rotated. Returns the values [T, K, H]."""
        head_dim, num_turned = self.config.head_dim, scratch.heads_TXH.shape[1]
        heads_TXH = projected_TX.view(len(projected_TX), -1, head_dim)
        turned_TXH, target = heads_TXH[:, :num_turned], scratch.as_they_come
        if layer.head_norm is None:
            target.copy_(turned_TXH.view(target.shape))
        else:
            norm_TX1 = torch.linalg.vector_norm(turned_TXH, dim=2, keepdim=True, dtype=torch.float32)
            normed_TXH = turned_TXH / norm_TX1.hypot_(self._head_floor)
            torch.mul(normed_TXH.view(target.shape), layer.head_norm.view(target.shape[1:]), out=target)
        scratch.turned_TXP.mul_(turns_T1P)
        return heads_TXH[:, num_turned:]

    def _normed(self, x_TD: Tensor, scale_D: Tensor, out: Tensor | None = None) -> Tensor:
        """RMSNorm in fp32, in half the calls of `F.rms_norm`: x / hypot(|x|, sqrt(D eps)) times the scale, which
        `_scale` has multiplied by sqrt(D). Written to `out` in its dtype.
        """
        norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.mul(x_TD / norm_T1.hypot_(self._floor), scale_D, out=out)


def _turns(positions_T: Tensor, frequencies_P: Tensor) -> Tensor:
    """The complex numbers [T, 1, H / 2] that rotate each pair."""
    angles_TP = positions_T.float()[:, None] * frequencies_P
    return torch.complex(angles_TP.cos(), angles_TP.sin())[:, None]


def _layer(block: Block, dtype: torch.dtype, pack: bool) -> _Layer:
    output, mlp = block.attention.output, block.mlp
    query_key_value, head_norm = _heads(block, dtype, pack)
    return _Layer(
        attention_norm=_scale(block.attention_norm),
        query_key_value=query_key_value,
        head_norm=head_norm,
        output=_projection([output.matrix()], [output.bias], dtype, pack),
        attention_post_norm=None if block.attention_post_norm is None else _scale(block.attention_post_norm),
        mlp_norm=_scale(block.mlp_norm),
        gated=_gated(mlp, dtype, pack),
        down=_projection([mlp.down.matrix()], [mlp.down.bias], dtype, pack),
        mlp_post_norm=None if block.mlp_post_norm is None else _scale(block.mlp_post_norm),
    )


def _heads(block: Block, dtype: torch.dtype, pack: bool) -> tuple[Projection, Tensor | None]:
    """The map to queries, keys and values, and the scales of normed queries and keys; in pairs where it packs."""
    attention, head_dim = block.attention, block.attention.head_dim
    maps = attention.query, attention.key
    matrices = [one.matrix().unflatten(0, (-1, head_dim)) for one in maps]
    biases = [None if one.bias is None else one.bias.detach().view(-1, head_dim) for one in maps]
    head_norm = None
    if attention.query_norm is not None and attention.key_norm is not None:
        scales = [_scale(one) for one in (attention.query_norm, attention.key_norm)]
        head_norm = torch.cat([scale.expand(len(matrix), -1) for scale, matrix in zip(scales, matrices, strict=True)])
    if pack:
        matrices = [_paired(matrix) for matrix in matrices]
        biases = [None if bias is None else _paired(bias) for bias in biases]
        head_norm = None if head_norm is None else _paired(head_norm)
    return _projection(
        [*(matrix.flatten(0, 1) for matrix in matrices), attention.value.matrix()],
        [*(None if bias is None else bias.flatten() for bias in biases), attention.value.bias],
        dtype,
        pack,
    ), head_norm


def _paired(heads_XH: Tensor) -> Tensor:
    """Rows of heads [heads, H, ...] in the order (0, H/2), (1, H/2 + 1), ..."""
    head_dim = heads_XH.shape[1]
    return heads_XH[:, torch.arange(head_dim, device=heads_XH.device).view(2, -1).T.flatten()]


def _scale(norm: RMSNorm) -> Tensor:
    scale_D = norm.weight.detach().float() + norm.offset
    return scale_D * len(scale_D) ** 0.5


def _gated(mlp: FeedForward, dtype: torch.dtype, pack: bool) -> Projection:
    """`act(gate(x)) * up(x)` [T, F].

    oneDNN can apply both to its fp32 sums. That is a fifth faster than torch's GELU on long prompts; torch's SiLU is
    fast, and one product of both matrices is worth more on short ones.
    """
    gate, up = mlp.gate.matrix().to(dtype), mlp.up.matrix().to(dtype)
    if pack and mlp.activation != "silu":
        packed_gate, packed_up = _packed(gate), _packed(up)
        unary, binary = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
        return lambda x: binary(x, unary(x, packed_gate, None, "gelu", [], "tanh"), packed_up, None, "mul")
    joined = _projection([gate, up], [None, None], dtype, pack)

    def active(x_TD: Tensor) -> Tensor:
        both_TF = joined(x_TD)
        gate_TF, up_TF = both_TF[:, : len(gate)], both_TF[:, len(gate) :]
        active_TF = F.silu(gate_TF) if mlp.activation == "silu" else F.gelu(gate_TF, approximate="tanh")
        return active_TF.mul_(up_TF)

    return active


def _projection(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype, pack: bool
) -> Projection:
    """A map to the results of several matrices [out, in] side by side."""
    parts = [weight.detach().to(dtype) for weight in weights]
    bias_parts = [None if bias is None else bias.detach().to(dtype) for bias in biases]
    if pack:
        given = [bias for bias in bias_parts if bias is not None]
        packed = _packed(torch.cat(parts) if len(parts) > 1 else parts[0])
        bias = torch.cat(given) if given else None
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x, packed, bias, "none", [], "")
    if len(parts) == 1:
        return lambda x: F.linear(x, parts[0], bias_parts[0])
    return lambda x: torch.cat([F.linear(x, w, b) for w, b in zip(parts, bias_parts, strict=True)], dim=-1)


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, 8)
