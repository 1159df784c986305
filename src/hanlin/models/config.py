"""`ModelConfig`: the space of some twenty numbers in which Gemma 1, 2, 3, Llama 3, SmolLM2 and Qwen2.5 are points.

Nothing in the model knows a family's name; `families.py` fills this in from a Hugging Face config or a GGUF header.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched: "linear" divides all by `factor`; "llama3" only the slow ones (Llama 3.1
    model card, `apply_scaling`).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that tells one decoder from another. Sizes in elements; `windows` has one entry a layer, None where a
    layer sees everything.
    """

    family: str  # which layout to write when saving; the model itself never reads it
    vocab_size: int
    num_layers: int
    width: int
    ffn_width: int  # of one of gate and up
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    activation: Literal["silu", "gelu_tanh"]
    norm_eps: float
    norm_offset: float = 0.0  # Gemma stores w and multiplies by 1 + w
    post_norms: bool = False  # Gemma 2 and 3 also normalise what each sub-layer returns
    qk_norm: bool = False  # Gemma 3: RMSNorm over head_dim, before RoPE
    qkv_bias: bool = False  # Qwen2.5
    scaled_embedding: bool = False  # Gemma: times sqrt(width), rounded to the activation dtype
    tied_head: bool = True
    query_scale: float  # head_dim ** -0.5, except Gemma 2 27B (144 ** -0.5) and Gemma 3 27B (168 ** -0.5)
    attention_cap: float | None = None  # Gemma 2: 50
    logit_cap: float | None = None  # Gemma 2: 30
    windows: tuple[int | None, ...]  # key k is visible to query q iff q - window < k <= q
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None  # layers with a window, where it differs (Gemma 3: 10 000, never scaled)

    @property
    def needs_wide_exponent(self) -> bool:
        """Gemma 2 and 3 activations pass 65504, the largest fp16 number (transformers #36822): they compute in bf16 or
        fp32.
        """
        return self.post_norms
