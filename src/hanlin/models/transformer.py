"""The decoder: `Transformer(config)` turns a flat stream of token ids into hidden states, and hidden states into
logits.

It works on streams [T, D], never on padded rows. How tokens see each other is a callable handed in (`Attend`): the
segments of a training batch, or the cache of a generation. It has never heard of families, tokenizers, ranks or losses.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hanlin.models.attention import SegmentAttention
from hanlin.models.config import ModelConfig
from hanlin.models.layers import FeedForward, Linear, RMSNorm, Rotary, rotary_frequencies
from hanlin.models.memory import Scratch
from hanlin.types import Segment


class Attend(Protocol):
    """Maps a layer's queries [T, Q, H], keys and values [T, K, H] (rotated, unscaled) to what they read, [T, Q, H]."""

    def __call__(self, layer: int, q_TQH: Tensor, k_TKH: Tensor, v_TKH: Tensor, /) -> Tensor: ...


class Attention(nn.Module):
    """Projections around an `Attend`. Query heads share key/value heads in contiguous groups; Q x H need not equal
    D.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.width, q_width, bias=config.qkv_bias)
        self.key = Linear(config.width, kv_width, bias=config.qkv_bias)
        self.value = Linear(config.width, kv_width, bias=config.qkv_bias)
        self.output = Linear(q_width, config.width)
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps, offset=config.norm_offset)
            self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps, offset=config.norm_offset)
        self.head_dim = config.head_dim

    def project(self, x_TD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, Q, H], keys and values [T, K, H]; queries and keys rotated."""
        heads = (x_TD.shape[0], -1, self.head_dim)
        q_TQH, k_TKH, v_TKH = self.query(x_TD).view(heads), self.key(x_TD).view(heads), self.value(x_TD).view(heads)
        if self.query_norm is not None and self.key_norm is not None:
            q_TQH, k_TKH = self.query_norm(q_TQH, q_TQH.dtype), self.key_norm(k_TKH, k_TKH.dtype)
        return rotary(q_TQH), rotary(k_TKH), v_TKH


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals; Gemma 2 and 3 normalise each sub-layer's result as well.

    `before` and `after` are what a compiler sees; what attention does between them depends on the batch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.width, eps=config.norm_eps, offset=config.norm_offset)

        self.attention_norm = norm()
        self.attention = Attention(config)
        self.attention_post_norm = norm() if config.post_norms else None
        self.mlp_norm = norm()
        self.mlp = FeedForward(config)
        self.mlp_post_norm = norm() if config.post_norms else None

    def forward(self, x_TD: Tensor, layer: int, rotary: Rotary, attend: Attend, dtype: torch.dtype) -> Tensor:
        q_TQH, k_TKH, v_TKH = self.before(x_TD, rotary, dtype)
        return self.after(x_TD, attend(layer, q_TQH, k_TKH, v_TKH), dtype)

    def before(self, x_TD: Tensor, rotary: Rotary, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What attention is given: queries, keys and values."""
        return self.attention.project(self.attention_norm(x_TD, dtype), rotary)

    def after(self, x_TD: Tensor, read_TQH: Tensor, dtype: torch.dtype) -> Tensor:
        """The block's result from its input and from what attention read."""
        read_TD = self.attention.output(read_TQH.reshape(x_TD.shape[0], -1))
        if self.attention_post_norm is not None:
            read_TD = self.attention_post_norm(read_TD, dtype)
        x_TD = x_TD + read_TD
        made_TD = self.mlp(self.mlp_norm(x_TD, dtype))
        if self.mlp_post_norm is not None:
            made_TD = self.mlp_post_norm(made_TD, dtype)
        return x_TD + made_TD

    def compile_parts(self) -> None:
        """Compile what lies on both sides of attention. All blocks of a model share two graphs a stream length."""
        self.before = torch.compile(self.before, dynamic=False)
        self.after = torch.compile(self.after, dynamic=False)


class Transformer(nn.Module):
    """A decoder with its head. Parameters are uninitialised: `weights.load_model` or `initialize` fills them.

    `compute_dtype` is what matmuls run in: the weights' own dtype after loading; bf16 over fp32 master weights in
    mixed-precision training. `attention_backend` is "auto" or one of `backends.BACKENDS`; `head_mode` is how the fused
    likelihood gets through a trained head (objectives/likelihood.py). The first `recomputed_layers` blocks keep only
    their input for the backward pass and are computed again there (arXiv 1604.06174).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.attention_backend = "auto"
        self.head_mode: Literal["fast", "lean"] = "fast"
        self.recomputed_layers = 0
        self.compiled = False
        self.weights_come_and_go = False  # a layer's weights are there only while it runs (training/parallel.py)
        self.scratch: Scratch | None = None
        # Where the head is tied, the head's own gradient of this matrix is dense: the lookup then adds its few rows to
        # that one, instead of making a second matrix of the vocabulary's size.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.width), freeze=False, sparse=config.tied_head
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps, offset=config.norm_offset)
        self.unembed = None if config.tied_head else Linear(config.width, config.vocab_size)
        self.score: Linear | None = None  # a reward model's head; see models/reward.py

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that matmuls run in."""
        return self.compute_dtype or self.embed.weight.dtype

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix [V, D]; the embedding's where they are tied. Only the head and the fused likelihood read
        it.
        """
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def lend(self, scratch: Scratch | None) -> None:
        """Let a training loop's scratch serve this model; None takes it back. The loop owns the gradients meanwhile:
        matrices add to `.grad` in place.
        """
        self.scratch = scratch
        for module in self.modules():
            if isinstance(module, Linear) and not self.compiled and not self.weights_come_and_go:
                module.scratch = scratch

    def compile_layers(self) -> None:
        """Compile every layer with torch.compile, anew for each stream length: pack streams to one length
        (`pack_all`'s `pad_to`). Gradients then take autograd's way, and only the head uses a lent scratch.
        """
        self.compiled = True
        for block in self.blocks:
            if isinstance(block, Block):
                block.compile_parts()

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Final normed hidden states [T, D] in the compute dtype for ids and positions [T] (int64)."""
        dtype = self.dtype
        x_TD = self.embed(tokens_T)
        if self.config.scaled_embedding:
            # sqrt(width) is rounded to the activation dtype, as in the reference (55.5 for width 3072 in bf16).
            x_TD = x_TD * torch.tensor(self.config.width**0.5, dtype=dtype, device=x_TD.device).to(x_TD.dtype)
        rotaries = self._rotaries(positions_T)
        for layer, block in enumerate(self.blocks):
            given = (x_TD, layer, rotaries[layer], attend, dtype)
            if layer < self.recomputed_layers and torch.is_grad_enabled():
                x_TD = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TD = block(*given)
        return self.norm(x_TD, dtype)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in fp32, soft-cap applied: the one way from hidden states to logits."""
        return soft_cap((hidden_ND @ self.head_weight.to(hidden_ND.dtype).T).float(), self.config.logit_cap)

    def logits(self, ids: Tensor) -> Tensor:
        """float32 logits [T, V] of one sequence of ids [T] (int64): row t predicts token t + 1."""
        ids = ids.to(self.device)
        positions_T = torch.arange(len(ids), device=self.device)
        attend = SegmentAttention(self.config, [Segment(0, len(ids))], self.device)
        return self.head(self.hidden(ids, positions_T, attend))

    def _rotaries(self, positions_T: Tensor) -> list[Rotary]:
        """One table for each kind of layer, listed per layer."""
        config = self.config
        shared = Rotary(positions_T, rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
        if config.local_rope_theta is None:
            return [shared] * config.num_layers
        local = Rotary(positions_T, rotary_frequencies(config.head_dim, config.local_rope_theta, None))
        return [shared if window is None else local for window in config.windows]

    def initialize(self, *, std: float = 0.02, seed: int = 0) -> None:
        """Fill every parameter at random: matrices normal(0, std), norms 1 - offset, biases 0. For tests and
        pre-training.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, RMSNorm):
                    module.weight.fill_(1 - module.offset)
                elif isinstance(module, Linear | nn.Embedding):
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
                if isinstance(module, Linear) and module.bias is not None:
                    module.bias.zero_()


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """`cap * tanh(logits / cap)` (Gemma 2 report, section 2), or the logits where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
