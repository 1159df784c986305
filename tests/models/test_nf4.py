"""QLoRA: four bits under adapters are LoRA on the unpacked weights; what is packed, saved and merged."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.errors import ConfigError
from hanlin.models.adapters import apply_adapter, save_adapter
from hanlin.models.layers import Linear
from hanlin.models.lora import LoraConfig, adapted, add_lora, lora_parameters, merge_lora, without_adapters
from hanlin.models.nf4 import BYTES_PER_NUMBER, Nf4, Nf4Linear, check_nf4, pack_layers, packed_matrices
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, save_model
from hanlin.objectives.orpo import OrpoConfig, orpo
from tiny import CONFIGS, VOCAB, random_pairs, tiny_model

CPU = torch.device("cpu")
CONFIG = LoraConfig(rank=4, alpha=6)
IDS = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(0))
# The 16 levels of NF4, arXiv 2305.14314, appendix E.
LEVELS = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


@pytest.fixture(autouse=True)
def _bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")


def packed_model(family: str, *, dtype: torch.dtype = torch.float32) -> Transformer:
    model = tiny_model(family).to(dtype)
    pack_layers(model, CPU)
    return model


def unpacked(model: Transformer) -> Transformer:
    """A plain fp32 model with the numbers that a packed one computes with."""
    plain = Transformer(model.config)
    values = dict(model.named_parameters()) | {name: one.matrix() for name, one in packed_matrices(model).items()}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name])
    return plain


def teach(model: Transformer) -> None:
    """Adapters that have learned something."""
    add_lora(model, CONFIG, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for linear in adapted(model).values():
            linear.up.copy_(torch.randn(linear.up.shape, generator=generator) * 0.2)


def gradients(model: Transformer) -> tuple[Tensor, list[Tensor]]:
    pairs = random_pairs(4)
    loss = orpo(model, pack_pairs(pairs), count_pairs(pairs), config=OrpoConfig(weight=0.7)).total
    loss.backward()
    found = []
    for parameter in lora_parameters(model):
        assert parameter.grad is not None
        found.append(parameter.grad)
    return loss.detach(), found


def test_a_matrix_is_rounded_to_the_papers_levels():
    """Scales with their own rounding apart, which double quantization brings: an eighth of a percent of the block."""
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    got = Nf4(matrix).matrix()
    levels, scale_B1 = torch.tensor(LEVELS), matrix.abs().amax(dim=1, keepdim=True)
    nearest = levels[(matrix[..., None] / scale_B1[..., None] - levels).abs().argmin(-1)] * scale_B1
    assert (got - nearest).abs().max() < 0.03 * scale_B1.max()
    assert ((got - nearest).norm() / nearest.norm()) < 0.01
    assert 0.06 < (got - matrix).norm() / matrix.norm() < 0.12


def test_a_large_matrix_takes_what_is_said():
    packed = Nf4(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)))
    assert packed.num_bytes == pytest.approx(BYTES_PER_NUMBER * 1024**2, rel=0.01)
    assert packed.shape == (1024, 1024)
    assert not list(packed.parameters())
    torch.testing.assert_close(packed.unpacked(torch.bfloat16), packed.matrix().bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_qlora_is_lora_on_the_unpacked_weights(family):
    packed = packed_model(family)
    plain = unpacked(packed)
    teach(packed)
    teach(plain)
    torch.testing.assert_close(packed.logits(IDS), plain.logits(IDS), rtol=1e-5, atol=1e-5)
    loss, mine = gradients(packed)
    expected_loss, expected = gradients(plain)
    torch.testing.assert_close(loss, expected_loss)
    for one, other in zip(mine, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm().clamp(min=1e-6)


def test_in_bf16_it_stays_near():
    packed = packed_model("llama", dtype=torch.bfloat16)
    plain = unpacked(packed).to(torch.bfloat16)
    teach(packed)
    teach(plain)
    loss, mine = gradients(packed)
    expected_loss, expected = gradients(plain)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.02)
    mine_X, expected_X = (torch.cat([one.flatten() for one in both]) for both in (mine, expected))
    assert (mine_X - expected_X).norm() < 0.05 * expected_X.norm()


def test_all_maps_of_the_layers_are_packed_and_nothing_else():
    model = packed_model("qwen2")
    assert len(packed_matrices(model)) == 7 * model.config.num_layers
    assert [name for name, one in model.named_modules() if isinstance(one, Linear)] == []
    assert not any(parameter.requires_grad for parameter in model.parameters())
    untied = packed_model("llama")
    assert [name for name, one in untied.named_modules() if isinstance(one, Linear)] == ["unembed"]


def test_maps_without_an_adapter_stay_in_four_bits_and_let_gradients_through():
    packed = packed_model("llama")
    plain = unpacked(packed)
    config = LoraConfig(rank=4, alpha=6, targets=("q_proj",))
    for model in (packed, plain):
        add_lora(model, config, seed=1)
    assert isinstance(packed.get_submodule("blocks.0.mlp.up"), Nf4Linear)
    _, mine = gradients(packed)
    _, expected = gradients(plain)
    for one, other in zip(mine, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm().clamp(min=1e-6)


def test_without_adapters_it_is_the_packed_base():
    model, base = packed_model("smollm2"), packed_model("smollm2")
    teach(model)
    assert not torch.equal(model.logits(IDS), base.logits(IDS))
    with without_adapters(model):
        assert torch.equal(model.logits(IDS), base.logits(IDS))


def test_merged_and_saved_models_compute_what_was_trained(tmp_path: Path):
    model = packed_model("qwen2")
    teach(model)
    logits_TV = model.logits(IDS).detach()
    save_model(model, tmp_path, dtype="float32")
    torch.testing.assert_close(load_model(tmp_path, dtype="float32").logits(IDS), logits_TV, rtol=1e-4, atol=1e-4)
    assert packed_matrices(model)  # it stays as it was
    merge_lora(model)
    assert not packed_matrices(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.logits(IDS), logits_TV, rtol=1e-4, atol=1e-4)


def test_its_adapter_is_peft_s_and_opens_on_the_unpacked_base(tmp_path: Path):
    model = packed_model("llama")
    base = unpacked(model)
    teach(model)
    save_adapter(model, tmp_path, CONFIG, base="base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    apply_adapter(base, tmp_path)
    torch.testing.assert_close(base.logits(IDS), model.logits(IDS), rtol=1e-4, atol=1e-4)


def test_without_bitsandbytes_the_error_names_a_way_on(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    with pytest.raises(ConfigError, match=r'pip install "hanlin\[cuda\]".*model.dtype = "bfloat16"'):
        check_nf4()
