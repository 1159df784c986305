"""Tiny random models of every family, random pairs and texts: what the laws are proven on."""

import random

from hanlin.models.config import ModelConfig, RopeScaling
from hanlin.models.transformer import Transformer
from hanlin.types import EncodedPair, Tokens

VOCAB = 97
_GEMMA = {
    "activation": "gelu_tanh",
    "norm_eps": 1e-6,
    "norm_offset": 1.0,
    "scaled_embedding": True,
    "query_scale": 16**-0.5,
}
_LLAMA = {"activation": "silu", "norm_eps": 1e-5, "query_scale": 16**-0.5}


def _config(family: str, **differences) -> ModelConfig:
    sizes = {
        "family": family,
        "vocab_size": VOCAB,
        "num_layers": 3,
        "width": 24,
        "ffn_width": 40,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_length": 512,
        "rope_theta": 10_000.0,
        "windows": (None, None, None),
    }
    return ModelConfig(**(sizes | differences))


CONFIGS = {
    "gemma": _config("gemma", **_GEMMA, num_kv_heads=1),
    "gemma2": _config("gemma2", **_GEMMA, post_norms=True, attention_cap=2.0, logit_cap=1.5, windows=(5, None, 5)),
    "gemma3": _config(
        "gemma3",
        **_GEMMA,
        num_kv_heads=1,
        post_norms=True,
        qk_norm=True,
        windows=(5, 5, None),
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
        local_rope_theta=1_000.0,
    ),
    "llama": _config("llama", **_LLAMA, tied_head=False, rope_scaling=RopeScaling(kind="llama3", factor=8.0)),
    "smollm2": _config("llama", **_LLAMA),
    "qwen2": _config("qwen2", **_LLAMA, qkv_bias=True),
}


def tiny_model(family: str, *, std: float = 0.3, seed: int = 0) -> Transformer:
    """A small fp32 model whose soft-caps are reached and whose windows are shorter than the pairs."""
    model = Transformer(CONFIGS[family])
    model.initialize(std=std, seed=seed)
    return model


def random_pairs(number: int, *, seed: int = 0, shared: bool = True, longest: int = 14) -> list[EncodedPair]:
    """Pairs with prompts and answers of 1 to `longest` tokens; some answers begin alike, and one pair has a one-token
    answer.
    """
    source = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(source.randrange(VOCAB) for _ in range(source.randint(low, high)))

    pairs = []
    for index in range(number):
        start = ids(1, 4) if shared and index % 2 else ()
        chosen, rejected = (*start, *ids(1, longest)), (*start, *ids(1, longest))
        if index == 0:
            chosen = chosen[:1]
        pairs.append(EncodedPair(ids(1, longest), chosen, rejected, id=f"pair-{index}"))
    return pairs


def random_texts(number: int, *, seed: int = 0) -> list[Tokens]:
    """Texts of 2 to 30 tokens, scored here and there; the first is scored whole, its first token included."""
    source = random.Random(seed)
    texts = []
    for index in range(number):
        ids = tuple(source.randrange(VOCAB) for _ in range(source.randint(2, 30)))
        scored = tuple(index == 0 or source.random() < 0.5 for _ in ids)
        texts.append(Tokens(ids, (*scored[:-1], True), id=f"text-{index}"))
    return texts
