"""Our logits against `transformers` in fp32, on random small models of every family, reading and writing."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hanlin.models.weights import load_model, save_model

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def gemma3_rope(**full: float | str) -> dict[str, dict[str, float | str]]:
    return {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0, **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }


CASES = {
    "gemma-one-kv-head": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma-all-heads": ("Gemma", {"head_dim": 16, "num_key_value_heads": 4}),
    "gemma2-window-caps": (
        "Gemma2",
        {
            "head_dim": 32,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2-no-caps-untied": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3-two-thetas": (
        "Gemma3Text",
        {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 12, "num_hidden_layers": 7},
    ),
    "gemma3-linear-one-kv-head": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "num_key_value_heads": 1,
            "sliding_window": 4,
            "layer_types": GEMMA3_LAYERS,
            "rope_parameters": gemma3_rope(rope_type="linear", factor=8.0),
        },
    ),
    "llama-untied-llama3-rope": (
        "Llama",
        {"head_dim": 12, "rope_parameters": {"rope_theta": 500_000.0, **LLAMA3_ROPE}, "tie_word_embeddings": False},
    ),
    "llama-tied-linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
    ),
    "llama-wide-heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "qwen2-biases": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
}


def random_model(case: str, std: float = 0.3) -> transformers.PreTrainedModel:
    kind, fields = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **fields}, attn_implementation="eager")
    architecture = "Gemma3" if kind == "Gemma3Text" else kind
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator)
    return model


def reference_logits(model: transformers.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs() / theirs.abs().clamp_min(1)).max().item()


def some_ids(vocab_size: int, length: int = 40) -> torch.Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    reference = random_model(case)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.dtype == torch.float32
    ids = some_ids(97)
    with torch.no_grad():
        assert worst(model.logits(ids), reference_logits(reference, ids)) <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_what_we_save(case: str, tmp_path: Path) -> None:
    random_model(case).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(model, tmp_path / "ours", dtype="float32", bos_id=2, eos_ids=(1, 5), pad_id=0)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    opened, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert opened.config.eos_token_id == [1, 5]
    ids = some_ids(97)
    with torch.no_grad():
        assert worst(model.logits(ids), reference_logits(opened, ids)) <= 1e-4


def test_caps_are_reached_in_the_case_that_has_them() -> None:
    """The cases above would prove nothing about soft-caps if no score came near one."""
    logits = reference_logits(random_model("gemma2-window-caps"), some_ids(97))
    assert logits.abs().max() > 0.99 * 3.0


def test_windows_matter_in_the_cases_that_have_them(tmp_path: Path) -> None:
    for case in ("gemma2-window-caps", "gemma3-two-thetas", "qwen2-window"):
        reference = random_model(case)
        before = reference_logits(reference, some_ids(97))
        reference.config.sliding_window = 64
        wide = type(reference)(reference.config).eval()
        wide.load_state_dict(reference.state_dict())
        assert worst(before, reference_logits(wide, some_ids(97))) > 1e-2


@pytest.mark.assets
def test_real_smollm2_equals_transformers(assets: Path, tmp_path: Path) -> None:
    model = load_model(assets / "smollm2-135m-instruct.gguf", dtype="float32")
    save_model(model, tmp_path, dtype="float32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198])
    with torch.no_grad():
        assert worst(model.logits(ids), reference_logits(reference, ids)) <= 1e-4


@pytest.mark.assets
@pytest.mark.filterwarnings("ignore")  # of the gguf package and transformers' converter
def test_real_smollm2_gguf_is_read_as_transformers_reads_it(assets: Path) -> None:
    """An independent reader of the same file: wrong row order of q and k would show here."""
    model = load_model(assets / "smollm2-135m-instruct.gguf", dtype="float32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        assets, gguf_file="smollm2-135m-instruct.gguf", dtype=torch.float32
    )
    ids = torch.tensor([1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198])
    with torch.no_grad():
        assert worst(model.logits(ids), reference_logits(reference, ids)) <= 1e-4
