"""What sets the families apart, as data, and what their files call the parts of our one decoder.

A family is a row of `FAMILIES`, never a class, and the model itself never sees it. Surprises: Gemma's head is tied
unless the config says otherwise, Llama's is not; "post_attention_layernorm" is the norm before the MLP in Gemma 1,
Llama and Qwen, and the norm after attention in Gemma 2 and 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family apart, and the config values that its files may leave out."""

    model_types: tuple[str, ...]  # in config.json; the first is the one we write
    architecture: str
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    scaled_embedding: bool = False
    query_scalar: bool = False  # has query_pre_attn_scalar; others scale by head_dim ** -0.5
    logit_cap: bool = False
    attention_cap: bool = False  # Gemma 3 has the field, but transformers never applies it: read for Gemma 2 only
    windows: Literal["pattern", "qwen2"] | None = None
    local_theta: bool = False
    permuted_gguf: bool = False  # GGUF holds the rows of q and k in interleaved order
    defaults: Mapping[str, Any]


_GEMMA_DEFAULTS = {
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "rope_theta": 10_000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA_2B_SIZES = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
}

# Defaults: transformers 5.23, models/{gemma,gemma2,gemma3,llama,qwen2}/configuration_*.py; the tests check them
# against the classes.
FAMILIES: dict[str, Family] = {
    "gemma": Family(
        model_types=("gemma",),
        architecture="GemmaForCausalLM",
        norm_offset=1.0,
        scaled_embedding=True,
        defaults={
            **_GEMMA_DEFAULTS,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
    ),
    "gemma2": Family(
        model_types=("gemma2",),
        architecture="Gemma2ForCausalLM",
        norm_offset=1.0,
        post_norms=True,
        scaled_embedding=True,
        query_scalar=True,
        logit_cap=True,
        attention_cap=True,
        windows="pattern",
        defaults={
            **_GEMMA_DEFAULTS,
            **_GEMMA_2B_SIZES,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Family(
        model_types=("gemma3_text", "gemma3"),
        architecture="Gemma3ForCausalLM",
        norm_offset=1.0,
        post_norms=True,
        qk_norm=True,
        scaled_embedding=True,
        query_scalar=True,
        logit_cap=True,
        windows="pattern",
        local_theta=True,
        defaults={
            **_GEMMA_DEFAULTS,
            **_GEMMA_2B_SIZES,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
        },
    ),
    "llama": Family(
        model_types=("llama",),
        architecture="LlamaForCausalLM",
        permuted_gguf=True,
        defaults=_LLAMA_DEFAULTS,
    ),
    "qwen2": Family(
        model_types=("qwen2",),
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        windows="qwen2",
        defaults={
            **_LLAMA_DEFAULTS,
            "vocab_size": 151_936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
}

_BLOCK_NAMES = {
    # ours: (Hugging Face, GGUF); the norms of the Hugging Face layout are filled in by `_block_names`.
    "attention.query": ("self_attn.q_proj", "attn_q"),
    "attention.key": ("self_attn.k_proj", "attn_k"),
    "attention.value": ("self_attn.v_proj", "attn_v"),
    "attention.output": ("self_attn.o_proj", "attn_output"),
    "attention.query_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.key_norm": ("self_attn.k_norm", "attn_k_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
    "attention_norm": ("input_layernorm", "attn_norm"),
}
_TWO_NORMS = {"mlp_norm": ("post_attention_layernorm", "ffn_norm")}
_FOUR_NORMS = {
    "attention_post_norm": ("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
    "mlp_post_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}


def names_to_hf(config: ModelConfig) -> dict[str, str]:
    """Hugging Face's name of every parameter of ours; no two share one."""
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not config.tied_head:
        names["unembed.weight"] = "lm_head.weight"
    return names | _layer_names(config, "model.layers.", 0)


def names_to_gguf(config: ModelConfig) -> dict[str, str]:
    """llama.cpp's name of every parameter of ours; no two share one."""
    names = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    if not config.tied_head:
        names["unembed.weight"] = "output.weight"
    return names | _layer_names(config, "blk.", 1)


def _layer_names(config: ModelConfig, prefix: str, column: int) -> dict[str, str]:
    parts = _BLOCK_NAMES | (_FOUR_NORMS if config.post_norms else _TWO_NORMS)
    names = {}
    for ours, theirs in parts.items():
        if ours.endswith(("query_norm", "key_norm")) and not config.qk_norm:
            continue
        biased = config.qkv_bias and ours in ("attention.query", "attention.key", "attention.value")
        for kind in ("weight", "bias") if biased else ("weight",):
            for layer in range(config.num_layers):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"{prefix}{layer}.{theirs[column]}.{kind}"
    return names
