"""Config files of every family, in every spelling, into `ModelConfig` and back."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from dataclasses import replace
from typing import Any

import pytest
import transformers

from hanlin.errors import CheckpointError
from hanlin.models.config import ModelConfig, RopeScaling
from hanlin.models.families import config_from_hf, config_notes, config_to_hf
from hanlin.models.layouts import names_to_gguf, names_to_hf
from hanlin.models.weights import count_parameters

CLASSES = {
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
}
LLAMA31_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama(**fields: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8}
    return {"model_type": "llama", "vocab_size": 100, **sizes, **fields}


@pytest.mark.parametrize("model_type", CLASSES)
def test_fields_left_out_mean_what_transformers_means(model_type: str) -> None:
    full = getattr(transformers, CLASSES[model_type])().to_dict()
    assert config_from_hf({"model_type": model_type}) == config_from_hf(full)


# Shapes are those of the published configs; the counts of Gemma 1 and Llama 3 are the published ones.
GEMMA_27B = {"head_dim": 128, "num_key_value_heads": 16}
COUNTS = {
    "gemma-2b": ({"model_type": "gemma"}, (2048, 18, 8, 1, 16384), {}, 2_506_172_416),
    "gemma-7b": ({"model_type": "gemma"}, (3072, 28, 16, 16, 24576), {}, 8_537_680_896),
    "gemma2-2b": ({"model_type": "gemma2"}, (2304, 26, 8, 4, 9216), {}, 2_614_341_888),
    "gemma2-9b": ({"model_type": "gemma2"}, (3584, 42, 16, 8, 14336), {}, 9_241_705_984),
    "gemma2-27b": ({"model_type": "gemma2"}, (4608, 46, 32, 16, 36864), {"head_dim": 128}, 27_227_128_320),
    "gemma3-270m": ({"model_type": "gemma3_text"}, (640, 18, 4, 1, 2048), {"vocab_size": 262144}, 268_098_176),
    "gemma3-1b": ({"model_type": "gemma3_text"}, (1152, 26, 4, 1, 6912), {"vocab_size": 262144}, 999_885_952),
    "gemma3-4b": ({"model_type": "gemma3_text"}, (2560, 34, 8, 4, 10240), {}, 3_880_263_168),
    "llama3-8b": ({"model_type": "llama"}, (4096, 32, 32, 8, 14336), {"vocab_size": 128256}, 8_030_261_248),
    "llama3.2-1b": (
        {"model_type": "llama", "tie_word_embeddings": True},
        (2048, 16, 32, 8, 8192),
        {"vocab_size": 128256, "head_dim": 64},
        1_235_814_400,
    ),
    "llama3.2-3b": (
        {"model_type": "llama", "tie_word_embeddings": True},
        (3072, 28, 24, 8, 8192),
        {"vocab_size": 128256, "head_dim": 128},
        3_212_749_824,
    ),
    "smollm2-135m": (
        {"model_type": "llama", "tie_word_embeddings": True},
        (576, 30, 9, 3, 1536),
        {"vocab_size": 49152},
        134_515_008,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    kind, (width, layers, heads, kv_heads, ffn), more, expected = COUNTS[name]
    raw = {
        **kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        **more,
    }
    assert count_parameters(config_from_hf(raw)) == expected


def test_sparse_gemma3_with_vision() -> None:
    """The published gemma-3-4b config names five fields of the text model; the rest are the class's defaults."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = config_from_hf({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert config.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.windows[:6] == (1024, 1024, 1024, 1024, 1024, None)
    assert config.tied_head
    assert count_parameters(config) == 3_880_263_168


def test_gemma3_spellings_agree() -> None:
    old = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "sliding_window": 33,
        "sliding_window_pattern": 3,
        "torch_dtype": "bfloat16",
    }
    sliding = [(layer + 1) % 3 != 0 for layer in range(7)]
    new = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
        "sliding_window": 33,
        "layer_types": ["sliding_attention" if local else "full_attention" for local in sliding],
        "dtype": "bfloat16",
    }
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(old).windows == tuple(33 if local else None for local in sliding)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA31_ROPE}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA31_ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA31_ROPE}},
        {"rope_parameters": {"full_attention": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA31_ROPE}}},
    ],
)
def test_llama3_rope_spellings_agree(fields: dict[str, Any]) -> None:
    config = config_from_hf(llama(**fields))
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(kind="llama3", factor=8.0, original_max_length=8192)


def test_reading_leaves_the_given_config_alone() -> None:
    raw = llama(rope_scaling={"type": "linear", "factor": 2.0})
    config_from_hf(raw)
    assert raw == llama(rope_scaling={"type": "linear", "factor": 2.0})


def test_defaults_that_differ_between_families() -> None:
    assert not config_from_hf(llama()).tied_head
    assert config_from_hf({"model_type": "gemma"}).tied_head
    assert config_from_hf(llama()).head_dim == 8
    assert config_from_hf(llama(head_dim=None, num_key_value_heads=None)).num_kv_heads == 8
    assert config_from_hf({"model_type": "gemma", "hidden_act": "gelu"}).activation == "gelu_tanh"
    assert (
        config_from_hf({"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}).activation
        == "gelu_tanh"
    )
    assert config_from_hf({"model_type": "gemma2", "hidden_act": "gelu"}).activation == "gelu_tanh"
    assert config_from_hf({"model_type": "gemma2", "final_logit_softcapping": None}).logit_cap is None
    assert config_from_hf({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}).attention_cap is None
    assert config_from_hf({"model_type": "gemma2"}).windows[:3] == (4096, None, 4096)


def test_qwen2_windows() -> None:
    raw = llama(model_type="qwen2", num_hidden_layers=4, num_key_value_heads=2, sliding_window=10, max_window_layers=2)
    assert config_from_hf(raw).windows == (None,) * 4
    assert config_from_hf({**raw, "use_sliding_window": True}).windows == (None, None, 10, 10)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert config_from_hf({**raw, "use_sliding_window": True, "layer_types": kinds}).windows == (10, None, 10, None)
    assert config_from_hf(raw).qkv_bias


def test_first_days_gemma2_9b_is_obeyed_and_noted() -> None:
    raw = {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16}
    config = config_from_hf({**raw, "num_key_value_heads": 8, "query_pre_attn_scalar": 224})
    assert config.query_scale == 224**-0.5
    assert "224" in config_notes(config)[0]
    assert config_notes(config_from_hf({**raw, "query_pre_attn_scalar": 256})) == []


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ({"model_type": "mistral"}, ["model_type", "'mistral'", "gemma2"]),
        ({}, ["model_type", "None"]),
        (llama(attention_bias=True), ["attention_bias", "True", "false"]),
        (llama(mlp_bias=True), ["mlp_bias", "True"]),
        (llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}), ["rope_type", "'yarn'", "llama3"]),
        (llama(rope_scaling={"type": "dynamic", "factor": 4.0}), ["rope_type", "'dynamic'", "linear"]),
        (llama(rope_scaling={"rope_type": "linear"}), ["rope_scaling.factor", "None"]),
        (llama(rope_scaling={"rope_type": "llama3", "factor": 8.0}), ["low_freq_factor"]),
        (llama(rope_scaling="linear"), ["rope_scaling", "'linear'", "an object"]),
        (llama(partial_rotary_factor=0.5), ["partial_rotary_factor", "0.5"]),
        (llama(quantization_config={"quant_method": "gptq"}), ["quantization_config", "'gptq'", "GGUF"]),
        (llama(num_local_experts=8), ["num_local_experts", "8", "dense"]),
        (llama(hidden_act="relu"), ["hidden_act", "'relu'", "silu"]),
        (llama(hidden_act="gelu"), ["hidden_act", "'gelu'"]),
        (llama(num_key_value_heads=3), ["num_key_value_heads", "3", "divisor"]),
        (llama(hidden_size="64"), ["hidden_size", "'64'", "whole number"]),
        (llama(num_hidden_layers=True), ["num_hidden_layers", "True"]),
        (llama(hidden_size=60), ["hidden_size", "60", "head_dim"]),
        (llama(tie_word_embeddings="no"), ["tie_word_embeddings", "'no'"]),
        (llama(layer_types=["sliding_attention"] * 4), ["layer_types", "no sliding windows"]),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, ["layer_types", "26"]),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, ["use_bidirectional_attention", "True"]),
        ({"model_type": "gemma3", "text_config": "x"}, ["text_config", "'x'"]),
        ({"model_type": "gemma2", "final_logit_softcapping": 0}, ["final_logit_softcapping", "0", "positive"]),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}},
            },
            ["rope_parameters.sliding_attention", "never scaled"],
        ),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(raw: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_from_hf(raw, source="DIR/config.json")
    message = str(caught.value)
    assert message.startswith("DIR/config.json: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def configs() -> dict[str, ModelConfig]:
    qwen = {"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 9}
    gemma3 = {"model_type": "gemma3_text", "num_hidden_layers": 13}
    return {
        "gemma": config_from_hf({"model_type": "gemma"}),
        "gemma2": config_from_hf({"model_type": "gemma2", "query_pre_attn_scalar": 144}),
        "gemma2-224": config_from_hf({"model_type": "gemma2", "query_pre_attn_scalar": 224}),
        "gemma2-untied": config_from_hf({"model_type": "gemma2", "tie_word_embeddings": False}),
        "gemma2-no-window": config_from_hf({"model_type": "gemma2", "sliding_window": None}),
        "gemma2-odd-windows": config_from_hf(
            {
                "model_type": "gemma2",
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            }
        ),
        "gemma3": config_from_hf({**gemma3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        "gemma3-27b-scale": config_from_hf({**gemma3, "query_pre_attn_scalar": 168, "final_logit_softcapping": 20.0}),
        "gemma3-short": config_from_hf({**gemma3, "num_hidden_layers": 3, "sliding_window_pattern": 5}),
        "llama": config_from_hf(llama(rope_theta=5e5, rms_norm_eps=1e-5)),
        "llama3.1": config_from_hf(llama(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA31_ROPE})),
        "llama-linear": config_from_hf(llama(head_dim=16, rope_scaling={"type": "linear", "factor": 2.0})),
        "qwen2": config_from_hf(qwen),
        "qwen2-windows": config_from_hf({**qwen, "use_sliding_window": True, "max_window_layers": 3}),
        "qwen2-odd-windows": config_from_hf(
            {**qwen, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 2}
        ),
    }


@pytest.mark.parametrize("name", configs())
def test_config_round_trip(name: str) -> None:
    config = configs()[name]
    assert config_from_hf(config_to_hf(config, "bfloat16")) == config


@pytest.mark.parametrize("name", configs())
def test_transformers_reads_our_config_as_we_do(name: str) -> None:
    config = configs()[name]
    raw = config_to_hf(config, "float16", bos_id=3, eos_ids=(1, 2), pad_id=0)
    theirs = transformers.AutoConfig.for_model(**raw)
    assert config_from_hf(theirs.to_dict()) == config
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (3, [1, 2], 0)
    assert str(theirs.dtype).removeprefix("torch.") == "float16"


def test_written_config_holds_what_older_readers_need() -> None:
    raw = config_to_hf(configs()["gemma3"], "bfloat16")
    assert raw["sliding_window_pattern"] == 6
    assert raw["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 8.0}
    assert raw["rope_local_base_freq"] == 1e4
    assert raw["hidden_act"] == raw["hidden_activation"] == "gelu_pytorch_tanh"
    assert raw["torch_dtype"] == "bfloat16"
    assert raw["tie_word_embeddings"] is True
    assert raw["architectures"] == ["Gemma3ForCausalLM"]
    assert isinstance(raw["query_pre_attn_scalar"], int)


def test_what_a_family_cannot_express_is_not_written() -> None:
    llama_config = configs()["llama"]
    for broken in (
        replace(llama_config, query_scale=0.5),
        replace(llama_config, windows=(4, None, None, None)),
        replace(llama_config, qkv_bias=True),
        replace(configs()["gemma2"], windows=(4, 8) * 13),
    ):
        with pytest.raises(CheckpointError):
            config_to_hf(broken, "bfloat16")


@pytest.mark.parametrize("name", configs())
def test_names_are_bijections(name: str) -> None:
    config = configs()[name]
    for names in (names_to_hf(config), names_to_gguf(config)):
        assert len(set(names.values())) == len(names)
    assert names_to_hf(config).keys() == names_to_gguf(config).keys()
