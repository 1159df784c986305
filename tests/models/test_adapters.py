"""Adapters in PEFT's format, both ways: peft opens ours, we open theirs, merged is unmerged; refusals are named."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from hanlin.errors import CheckpointError
from hanlin.models.adapters import adapter_base, apply_adapter, save_adapter, text_place
from hanlin.models.lora import LoraConfig, adapted, add_lora, merge_lora
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, open_checkpoint, save_model
from tiny import VOCAB, tiny_model

FAMILIES = ("llama", "gemma2", "qwen2")
IDS = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def assert_near(mine: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-5) -> None:
    assert (mine - expected).abs().max() <= within * expected.abs().max().clamp(min=1)


def write_base(path: Path, family: str) -> Path:
    save_model(tiny_model(family), path, dtype="float32")
    return path


def random_numbers(parameters: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in sorted(parameters):
            parameters[name].copy_(torch.randn(parameters[name].shape, generator=generator) * 0.2)


def write_foreign(path: Path, base: Path, **settings: Any) -> tuple[Path, torch.Tensor]:
    """An adapter that peft made and saved, and the logits that it gives."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    given = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    theirs = peft.get_peft_model(model, peft.LoraConfig(**given)).eval()
    random_numbers({name: one for name, one in theirs.named_parameters() if "lora_" in name})
    theirs.save_pretrained(path)
    with torch.no_grad():
        return path, theirs(input_ids=IDS[None]).logits[0]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_ours(family: str, rslora: bool, tmp_path: Path):
    base, model = write_base(tmp_path / "base", family), tiny_model(family)
    config = LoraConfig(rank=4, alpha=6, rslora=rslora)
    add_lora(model, config, seed=1)
    parts = {name: linear.up.data for name, linear in adapted(model).items()}
    random_numbers(parts)
    save_adapter(model, tmp_path / "adapter", config, base=str(base))
    below = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    theirs = peft.PeftModel.from_pretrained(below, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected_TV = theirs(input_ids=IDS[None]).logits[0]
        assert_near(model.logits(IDS), expected_TV)
        assert (model.logits(IDS) - tiny_model(family).logits(IDS)).abs().max() > 0.1
    assert_near(load_model(tmp_path / "adapter").logits(IDS).detach(), expected_TV)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3.5},
        {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 9}},
    ],
    ids=["plain", "rslora", "two maps", "patterns"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_we_open_theirs(family: str, settings: dict[str, Any], tmp_path: Path):
    base = write_base(tmp_path / "base", family)
    foreign, expected_TV = write_foreign(tmp_path / "adapter", base, **settings)
    unmerged = load_model(base)
    apply_adapter(unmerged, foreign)
    assert_near(unmerged.logits(IDS).detach(), expected_TV)
    notes: list[str] = []
    model = load_model(foreign, on_note=notes.append)
    assert_near(model.logits(IDS).detach(), expected_TV)
    assert any("LoRA adapter (rank 4)" in note for note in notes)
    assert not adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_exported_is_unmerged(family: str, tmp_path: Path):
    base = write_base(tmp_path / "base", family)
    foreign, expected_TV = write_foreign(tmp_path / "adapter", base)
    unmerged = load_model(base)
    apply_adapter(unmerged, foreign)
    save_model(unmerged, tmp_path / "from-unmerged", dtype="float32")
    save_model(load_model(foreign), tmp_path / "from-merged", dtype="float32")
    logits_TV = unmerged.logits(IDS).detach()
    merge_lora(unmerged)
    assert_near(unmerged.logits(IDS).detach(), logits_TV, within=1e-4)
    for name in ("from-unmerged", "from-merged"):
        assert_near(load_model(tmp_path / name).logits(IDS).detach(), logits_TV, within=1e-4)
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        assert_near(exported(input_ids=IDS[None]).logits[0].detach(), expected_TV, within=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adapters_of_half_precision(dtype: torch.dtype, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    base = write_base(tmp_path / "base", "llama")
    foreign, expected_TV = write_foreign(tmp_path / "adapter", base)
    file = foreign / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    assert_near(load_model(foreign).logits(IDS).detach(), expected_TV, within=0.02)


def change(path: Path, **values: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return write_foreign(tmp_path / "adapter", write_base(tmp_path / "base", "llama"), target_modules=["q_proj"])[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, '"modules_to_save" is ["lm_head"]'),
        ({"use_dora": True}, '"use_dora" is true'),
        ({"alora_invocation_tokens": [5, 6]}, '"alora_invocation_tokens" is [5, 6]'),
        ({"peft_type": "IA3"}, '"peft_type" is "IA3"'),
        ({"bias": "all"}, '"bias" is "all"'),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"r": 0}, '"r" is 0'),
        ({"lora_alpha": None}, '"lora_alpha" is None'),
        ({"r": 5}, "has rank 4"),
        ({"base_model_name_or_path": None}, "names no base model"),
    ],
)
def test_what_we_do_not_open_is_named(values: dict[str, Any], words: str, foreign: Path):
    change(foreign, **values)
    with pytest.raises(CheckpointError) as caught:
        load_model(foreign)
    assert words in str(caught.value)


def test_damaged_adapters_are_named(foreign: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    file = foreign / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    for changed, words in (
        ({first: tensors[first]}, "only one of lora_A and lora_B"),
        (tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 24)}, "lm_head.lora_A.weight is not part"),
        (tensors | {first: torch.ones(4, 3)}, "made for another model"),
        ({}, "holds no adapter"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=words):
            load_model(foreign)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(foreign)
    (foreign / "adapter_model.bin").touch()
    with pytest.raises(CheckpointError, match="pickled adapter"):
        load_model(foreign)
    (foreign / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(foreign)


def test_the_base_is_found_from_the_adapter_and_its_tokenizer_used(foreign: Path, tmp_path: Path):
    assert adapter_base(foreign) == tmp_path / "base"
    change(foreign, base_model_name_or_path="../base")
    assert adapter_base(foreign).resolve() == tmp_path / "base"
    assert open_checkpoint(foreign).config == open_checkpoint(tmp_path / "base").config
    assert text_place(foreign).resolve() == tmp_path / "base"
    (foreign / "tokenizer.json").touch()
    assert text_place(foreign) == foreign
    assert text_place(tmp_path / "base") == tmp_path / "base"


def test_an_adapter_is_not_put_on_another(foreign: Path, tmp_path: Path):
    model: Transformer = load_model(tmp_path / "base")
    apply_adapter(model, foreign)
    with pytest.raises(CheckpointError, match="has adapters already"):
        apply_adapter(model, foreign)


def test_rslora_scales_as_peft_does():
    config = LoraConfig(rank=16, alpha=8, rslora=True)
    theirs = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 8)),
        peft.LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["0"]),
    )
    assert theirs.base_model.model[0].scaling["default"] == config.scale == 2.0
    assert LoraConfig(rank=16).scale == 2.0
