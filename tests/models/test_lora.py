"""LoRA's laws: fresh adapters change nothing, merged = adapted, gradients are the dense formula's; PEFT agrees."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import copy
import re
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from hanlin.config import load_recipe
from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.errors import ConfigError
from hanlin.generation import Engine, Request, Sampling
from hanlin.models.layers import Linear
from hanlin.models.layouts import names_to_hf
from hanlin.models.lora import (
    TARGETS,
    LoraConfig,
    LoraLinear,
    adapted,
    add_lora,
    lora_parameters,
    merge_lora,
    target_shapes,
)
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, save_model
from hanlin.objectives.orpo import OrpoConfig, orpo
from tiny import CONFIGS, VOCAB, random_pairs, tiny_model

CONFIG = LoraConfig(rank=4, alpha=6)
IDS = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(0))


def trained_model(family: str, config: LoraConfig = CONFIG, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """A tiny model whose adapters have learned something: B is not zero."""
    model = tiny_model(family).to(dtype)
    add_lora(model, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for linear in adapted(model).values():
            linear.up.copy_(torch.randn(linear.up.shape, generator=generator) * 0.2)
    return model


def loss_of(model: Transformer) -> Tensor:
    pairs = random_pairs(4)
    return orpo(model, pack_pairs(pairs), count_pairs(pairs), config=OrpoConfig(weight=0.7)).total


def assert_near(mine: Tensor, expected: Tensor, *, within: float = 1e-5) -> None:
    assert (mine - expected).norm() <= within * expected.norm().clamp(min=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_fresh_adapters_change_nothing_bit_for_bit(family, dtype):
    model = tiny_model(family).to(dtype)
    before = model.logits(IDS)
    add_lora(model, CONFIG, seed=3)
    assert len(adapted(model)) == 7 * model.config.num_layers
    assert torch.equal(model.logits(IDS), before)


@pytest.mark.parametrize("family", CONFIGS)
def test_merged_equals_adapted(family):
    model, base = trained_model(family), tiny_model(family)
    names = [name for name, _ in base.named_parameters()]
    logits_TV = model.logits(IDS).detach()
    assert (logits_TV - base.logits(IDS)).abs().max() > 0.1
    requests = [Request(IDS[:length].tolist(), Sampling(temperature=0, max_tokens=16)) for length in (3, 9, 30)]
    replies = Engine(model, num_slots=2).generate(requests)
    merge_lora(model)
    assert_near(model.logits(IDS), logits_TV)
    assert Engine(model, num_slots=2).generate(requests) == replies
    assert replies != Engine(base, num_slots=2).generate(requests)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not adapted(model)


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_generation_reads_the_adapters(family):
    """The engine's own forward pass, against the adapted model without a cache."""
    model = trained_model(family)
    ids = IDS[:8].tolist()
    expected: list[int] = []
    for _ in range(12):
        expected.append(int(model.logits(torch.tensor(ids + expected))[-1].argmax()))
    (reply,) = Engine(model).generate([Request(ids, Sampling(temperature=0, max_tokens=12))])
    assert reply.ids == expected


class Dense(nn.Module):
    """The formula, as slow as it reads: the sum of both matrices, and autograd."""

    def __init__(self, linear: LoraLinear) -> None:
        super().__init__()
        self.weight, self.bias, self.down, self.up = linear.weight, linear.bias, linear.down, linear.up

    def forward(self, x: Tensor) -> Tensor:
        assert CONFIG.alpha is not None
        return F.linear(x, self.weight + (CONFIG.alpha / CONFIG.rank) * (self.up @ self.down), self.bias)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_are_those_of_the_dense_formula(family):
    model = trained_model(family)
    reference = copy.deepcopy(model)
    for name, linear in adapted(reference).items():
        path, _, attribute = name.rpartition(".")
        setattr(reference.get_submodule(path), attribute, Dense(linear))
    loss, expected = loss_of(model), loss_of(reference)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    slow = dict(reference.named_parameters())
    trained = set(map(id, lora_parameters(model)))
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None
            assert_near(parameter.grad, slow[name].grad)  # pyright: ignore[reportArgumentType]
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad
    assert len(trained) == 2 * 7 * model.config.num_layers


def test_two_passes_add_their_gradients():
    model = trained_model("smollm2")
    loss_of(model).backward()
    once = [parameter.grad.clone() for parameter in lora_parameters(model) if parameter.grad is not None]
    loss_of(model).backward()
    for parameter, grad in zip(lora_parameters(model), once, strict=True):
        assert torch.equal(parameter.grad, 2 * grad)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_keeps_its_input_and_one_thin_tensor(base):
    """Nothing as large as W but W itself, even where W is cast; nothing as large as the result."""
    linear = next(iter(adapted(trained_model("qwen2", dtype=base)).values()))
    x = torch.randn(50, linear.weight.shape[1]).bfloat16().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = linear(x)
    known = {tensor.data_ptr() for tensor in (x, linear.weight, linear.down, linear.up)}
    assert [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in known] == [(50, CONFIG.rank)]
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert linear.weight.grad is None
    assert linear.down.grad.dtype == linear.up.grad.dtype == torch.float32
    assert x.grad is not None


def test_a_frozen_map_keeps_no_input():
    model = trained_model("llama", LoraConfig(targets=("q_proj",)))
    model.lend(Scratch())
    linear = model.blocks[0].get_submodule("mlp.gate")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(50, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = linear(x)
    y.sum().backward()
    assert [tuple(tensor.shape) for tensor in kept] == [(40, 24)]
    assert_near(x.grad, linear.weight.sum(0).expand(50, 24))  # pyright: ignore


@pytest.mark.parametrize("targets", ["all-linear", ("v_proj",)], ids=str)
def test_lent_scratch_and_recomputed_layers_change_nothing(targets):
    """As the training loop runs it: frozen maps share their casts, and blocks are computed twice."""
    model = trained_model("qwen2", LoraConfig(rank=4, targets=targets))
    loss_of(model).backward()
    expected = [parameter.grad for parameter in lora_parameters(model)]
    model.zero_grad(set_to_none=True)
    model.lend(Scratch())
    model.recomputed_layers = 2
    loss_of(model).backward()
    for parameter, grad in zip(lora_parameters(model), expected, strict=True):
        assert_near(parameter.grad, grad)  # pyright: ignore[reportArgumentType]


def test_bf16_weights_get_fp32_adapters_and_one_rounding():
    model = trained_model("gemma3", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}
    sums = {name: linear.merged() for name, linear in adapted(model).items()}
    for name, linear in adapted(model).items():
        exact = linear.weight.double() + 1.5 * linear.up.double() @ linear.down.double()
        torch.testing.assert_close(sums[name].double(), exact, rtol=1e-6, atol=1e-6)
        assert torch.equal(linear.matrix(), sums[name].bfloat16())
    requests = [Request(IDS[:n].tolist(), Sampling(temperature=0, max_tokens=10)) for n in (4, 20)]
    replies = Engine(model).generate(requests)
    merge_lora(model)
    for name, summed in sums.items():
        assert torch.equal(model.get_submodule(name).weight, summed.bfloat16())
    assert Engine(model).generate(requests) == replies


@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_model_is_merged_and_opens_in_transformers(family, tmp_path: Path):
    model = trained_model(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    logits_TV = model.logits(IDS).detach()
    save_model(model, tmp_path, dtype="float32")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert adapted(model)
    assert_near(load_model(tmp_path).logits(IDS), logits_TV)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert_near(theirs(IDS[None]).logits[0], logits_TV)


def test_fp32_files_of_a_bf16_model_keep_every_bit_of_the_sum(tmp_path: Path):
    model = trained_model("llama", dtype=torch.bfloat16)
    save_model(model, tmp_path, dtype="float32")
    saved = load_model(tmp_path)
    for name, linear in adapted(model).items():
        assert torch.equal(saved.get_submodule(name).weight, linear.merged())
    save_model(model, tmp_path, dtype="bfloat16")
    saved = load_model(tmp_path)
    for name, linear in adapted(model).items():
        assert torch.equal(saved.get_submodule(name).weight, linear.matrix())
    assert torch.equal(saved.embed.weight, model.embed.weight)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("targets", ["all-linear", ("v_proj", "q_proj")], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_peft_agrees(family, targets, tmp_path: Path):
    """The same maps are chosen; with the same A and B, logits, loss and every gradient are equal."""
    config = LoraConfig(rank=4, alpha=6, targets=targets)
    save_model(tiny_model(family), tmp_path, dtype="float32")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    theirs = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=4, lora_alpha=6, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=targets if targets == "all-linear" else list(targets),
        ),
    )  # fmt: skip
    model = trained_model(family, config)
    names = names_to_hf(model.config)
    parts = {}
    for name, linear in adapted(model).items():
        prefix = f"base_model.model.{names[f'{name}.weight'].removesuffix('.weight')}"
        parts[f"{prefix}.lora_A.default.weight"] = linear.down
        parts[f"{prefix}.lora_B.default.weight"] = linear.up
    learning = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert learning.keys() == parts.keys()
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(parts[name])
    expected_TV, logits_TV = theirs(input_ids=IDS[None]).logits[0], model.logits(IDS)
    assert_near(logits_TV, expected_TV)
    loss, expected = (F.cross_entropy(some[:-1], IDS[1:]) for some in (logits_TV, expected_TV))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for name, parameter in learning.items():
        assert_near(parts[name].grad, parameter.grad)


def test_peft_draws_from_the_same_distribution_and_scales_alike():
    """A's bound is 1 / sqrt(in) for any rank, B is zero; alpha / rank is the factor, and twice the rank our default."""
    layer = nn.Linear(400, 300, bias=False)
    theirs = peft.get_peft_model(
        nn.Sequential(layer), peft.LoraConfig(r=64, lora_alpha=16, target_modules=["0"])
    ).base_model.model[0]
    assert theirs.scaling["default"] == LoraConfig(rank=64, alpha=16).scale == 0.25
    assert LoraConfig(rank=64).scale == 2
    model = tiny_model("smollm2")
    add_lora(model, LoraConfig(rank=64), seed=0)
    for linear, width in ((next(iter(adapted(model).values())), 24), (theirs, 400)):
        down = linear.down if isinstance(linear, LoraLinear) else linear.lora_A["default"].weight
        assert down.shape == (64, width)
        assert 0.98 < down.abs().max().item() * width**0.5 <= 1
        assert down.std().item() * width**0.5 == pytest.approx(3**-0.5, rel=0.05)
        up = linear.up if isinstance(linear, LoraLinear) else linear.lora_B["default"].weight
        assert not up.any()


def test_a_seed_gives_the_same_adapters():
    def drawn(seed: int, *targets: str) -> list[Tensor]:
        model = tiny_model("llama")
        add_lora(model, LoraConfig(targets=targets or "all-linear"), seed=seed)  # pyright: ignore[reportArgumentType]
        return lora_parameters(model)

    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert not torch.equal(drawn(1)[0], drawn(1)[2])
    assert all(map(torch.equal, drawn(1, "q_proj", "down_proj"), drawn(1, "down_proj", "q_proj")))


@pytest.mark.parametrize("family", CONFIGS)
def test_targets_carry_the_names_of_the_files(family):
    model = tiny_model(family)
    names = names_to_hf(model.config)
    for target, place in TARGETS.items():
        assert names[f"blocks.2.{place}.weight"].split(".")[-2] == target
    add_lora(model, LoraConfig(rank=3, targets=("k_proj", "up_proj")), seed=0)
    assert {name.split(".", 2)[2] for name in adapted(model)} == {"attention.key", "mlp.up"}
    assert isinstance(model.blocks[0].get_submodule("attention.query"), Linear)
    shapes = target_shapes(model.config, LoraConfig(targets=("k_proj", "up_proj")))
    assert 3 * sum(map(sum, shapes)) == sum(parameter.numel() for parameter in lora_parameters(model))


def test_adapters_are_not_put_on_adapters():
    model = trained_model("gemma")
    with pytest.raises(ConfigError, match="merge_lora"):
        add_lora(model, CONFIG, seed=0)
    merge_lora(model)
    add_lora(model, CONFIG, seed=0)


MISTAKES = {
    'targets = ["q_pro"]': ("q_proj", "down_proj", "did you mean 'q_proj'"),
    'targets = ["lm_head"]': ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    'targets = "all"': ("all-linear",),
    "targets = []": ("at least 1",),
    "rank = 0": ("greater than 0",),
    "dropout = 0.1": ("not a known key", "rank, rslora, targets"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_named_with_what_is_known(line, tmp_path: Path):
    (tmp_path / "lora.toml").write_text(line + "\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(LoraConfig, tmp_path / "lora.toml")
    message = str(caught.value)
    assert re.search(rf"\b{line.split()[0]}\b", message)
    for expected in MISTAKES[line]:
        assert expected in message
