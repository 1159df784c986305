"""Optimizers: the right one for each name, and bfloat16 weights that learn from updates smaller than their spacing.

What needs CUDA is marked `gpu` and has not run yet: no machine with a GPU was at hand. bitsandbytes' own classes run on
the CPU too (slowly, without paging), so the mapping of names and arguments is tested wherever the package is installed.
"""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.errors import ConfigError
from hanlin.objectives.orpo import OrpoConfig, orpo
from hanlin.training import optim as module
from hanlin.training.optim import StochasticAdamW, check_optimizer, make_optimizer, store_rounded
from hanlin.training.recipe import TrainingConfig
from tiny import random_pairs, tiny_model

BITSANDBYTES = ["paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit"]
ALL_RANDOM = torch.arange(-(2**15), 2**15, dtype=torch.int16)


def stochastic(*parameters: nn.Parameter, lr: float, seed: int = 0, decay: float = 0.0, **fields: Any):
    groups = [{"params": list(parameters), "weight_decay": decay}]
    return StochasticAdamW(groups, lr=lr, betas=fields.get("betas", (0.9, 0.999)), eps=1e-8, seed=seed)


def nearest(*parameters: nn.Parameter, lr: float, decay: float = 0.0) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, fused=True)


def random_grad(parameter: nn.Parameter, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


# Rounding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, 1.001, -1.001, 3.14159, -2e-20, 1e30, 0.0, -0.0, 1e-39, 0.9999, 65535.0])
def test_of_all_random_numbers_exactly_the_remainders_share_rounds_up(value: float):
    """The law of stochastic rounding, without a sample: every one of the 65,536 random numbers is tried once."""
    exact = torch.tensor(value)
    below = (exact.view(torch.int32) & -(2**16)).view(torch.float32)
    above = ((exact.view(torch.int32) & -(2**16)) + 2**16).view(torch.float32)
    remainder = int(exact.view(torch.int32) & 0xFFFF)
    out = torch.empty(len(ALL_RANDOM), dtype=torch.bfloat16)
    store_rounded(out, exact.repeat(len(ALL_RANDOM)), ALL_RANDOM)
    assert int((out == above.bfloat16()).sum()) == remainder
    assert int((out == below.bfloat16()).sum()) == len(ALL_RANDOM) - remainder
    assert out.double().mean().item() == pytest.approx(exact.double().item(), rel=1e-12, abs=1e-45)


def test_what_bf16_can_hold_stays():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    random = torch.randint(-(2**15), 2**15, finite.shape, dtype=torch.int16)
    out = torch.empty_like(finite)
    store_rounded(out, finite.float(), random)
    assert torch.equal(out.view(torch.int16), finite.view(torch.int16))


def test_tiny_updates_add_up_where_nearest_rounding_stands_still():
    """The spacing above 1 is 1/128. 100 steps of 4e-4 are five of it, and no single one is half of it."""
    lr, steps = 4e-4, 100
    ours, theirs = (nn.Parameter(torch.ones(20_000, 1).bfloat16()) for _ in range(2))
    optimizers = stochastic(ours, lr=lr), nearest(theirs, lr=lr)
    for _ in range(steps):
        ours.grad, theirs.grad = torch.full_like(ours, -0.5), torch.full_like(theirs, -0.5)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(theirs, torch.ones_like(theirs)), "if this moves, the premise of the whole class is wrong"
    moved = (ours.detach().double() - 1).mean().item()
    # One weight's random walk has a variance of at most steps * lr * spacing.
    sigma = (steps * lr / 128 / ours.numel()) ** 0.5
    assert moved == pytest.approx(steps * lr, abs=5 * sigma)


def test_weight_decay_smaller_than_the_spacing_adds_up_too():
    weight = nn.Parameter(torch.ones(20_000, 1).bfloat16())
    optimizer = stochastic(weight, lr=1e-3, decay=0.1)
    for _ in range(100):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight.detach().double().mean().item() == pytest.approx((1 - 1e-4) ** 100, abs=5 * (1e-2 / 128 / 2e4) ** 0.5)


def test_the_second_moment_falls_as_it_should_and_with_nearest_rounding_never_does():
    ours, theirs = (nn.Parameter(torch.ones(20_000, 1).bfloat16()) for _ in range(2))
    optimizers = stochastic(ours, lr=1e-6), nearest(theirs, lr=1e-6)
    for step in range(200):
        for parameter in (ours, theirs):
            parameter.grad = torch.full_like(parameter, 1.0 if step == 0 else 0.0)
        for optimizer in optimizers:
            optimizer.step()
    stuck = optimizers[1].state[theirs]["exp_avg_sq"]
    assert torch.equal(stuck, torch.full_like(stuck, 0.001))
    mean = optimizers[0].state[ours]["exp_avg_sq"].double().mean().item()
    assert mean == pytest.approx(0.001 * 0.999**199, rel=0.003)


# The update ----------------------------------------------------------------------------------------------------------


def test_in_fp32_it_is_torchs_adamw(monkeypatch: pytest.MonkeyPatch):
    """Chunks of seven numbers, so that their borders are everywhere."""
    monkeypatch.setitem(module._CHUNK, "cpu", 7)
    start = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = stochastic(ours, lr=1e-2, decay=0.1), nearest(theirs, lr=1e-2, decay=0.1)
    for step in range(20):
        ours.grad = random_grad(ours, step)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)  # as the loop's schedule does
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizers[0].state[ours][key], optimizers[1].state[theirs][key])


def test_in_bf16_each_step_is_the_fp32_one_up_to_one_spacing():
    """From the same bf16 state, every stored number is one of the two neighbours of what fp32 gives."""
    weight = nn.Parameter(random_grad(nn.Parameter(torch.empty(64, 33)), 5).bfloat16())
    optimizer = stochastic(weight, lr=1e-2, decay=0.1)
    for step in range(8):
        exact = nn.Parameter(weight.detach().float())
        reference = nearest(exact, lr=1e-2, decay=0.1)
        before = optimizer.state[weight]
        if before:
            kept = {key: before[key].float() for key in ("exp_avg", "exp_avg_sq")}
            reference.state[exact] = {"step": torch.tensor(float(before["step"])), **kept}
        weight.grad = random_grad(weight, step)
        exact.grad = weight.grad.float()
        optimizer.step()
        reference.step()
        stored = [weight, optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]]
        wide = [exact, reference.state[exact]["exp_avg"], reference.state[exact]["exp_avg_sq"]]
        for one, other in zip(stored, wide, strict=True):
            assert one.dtype == torch.bfloat16
            assert ((one.double() - other.double()).abs() <= other.double().abs() * 2**-7 + 1e-30).all()
            assert not torch.equal(one, other.bfloat16()), "this is nearest rounding"


def test_a_first_step_with_rate_zero_changes_nothing():
    weight = nn.Parameter(torch.randn(50, 3).bfloat16())
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    stochastic(weight, lr=0.0, decay=0.1).step()
    assert torch.equal(weight, before)


def test_the_roundings_of_weight_and_moments_are_independent():
    """Three lots of 16 bits: where the weight is rounded up says nothing of where a moment is."""
    weight = nn.Parameter(torch.full((100_000, 1), 1.0).bfloat16())
    optimizer = stochastic(weight, lr=2**-8)  # the weight goes half a spacing (above 1) up
    weight.grad = torch.full_like(weight, -1.0)
    optimizer.step()
    up = [
        (stored > stored.min()).flatten().double() for stored in (weight, *list(optimizer.state[weight].values())[1:])
    ]
    for number, one in enumerate(up):
        assert 0.05 < one.mean() < 0.95, "the case does not round both ways"
        for other in up[:number]:
            assert torch.corrcoef(torch.stack((one, other)))[0, 1].abs() < 0.02


# Reproducible --------------------------------------------------------------------------------------------------------


def walk(steps: int, *, seed: int = 0, skip: int | None = None) -> list[Tensor]:
    """Two weights after some steps; the first has no gradient in step `skip`."""
    parameters = [nn.Parameter(torch.ones(40, 5).bfloat16()), nn.Parameter(torch.ones(30, 2).bfloat16())]
    optimizer = stochastic(*parameters, lr=1e-3, seed=seed)
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = None if number == 0 and step == skip else random_grad(parameter, 10 * step + number)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_the_same_seed_is_the_same_run_and_another_is_another():
    one, again, other = walk(5), walk(5), walk(5, seed=1)
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])


def test_what_one_weight_draws_does_not_depend_on_another():
    assert torch.equal(walk(4, skip=2)[1], walk(4)[1])


def test_no_two_weights_and_no_two_steps_draw_alike():
    weights = [nn.Parameter(torch.ones(1000, 1).bfloat16()) for _ in range(2)]
    optimizer = stochastic(*weights, lr=2**-9)
    seen = []
    for _ in range(2):
        for weight in weights:
            weight.data.fill_(1)
            weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
        seen += [weight.detach().clone() for weight in weights]
    assert all(0.2 < (one == 1).double().mean() < 0.8 for one in seen)
    assert not any(torch.equal(one, other) for number, one in enumerate(seen) for other in seen[:number])


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is newly made: views of what was there before do not count."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.known:
                self.numel = max(self.numel, one.numel())
        return made


def test_no_temporary_is_as_large_as_a_parameter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(module._CHUNK, "cpu", 100)
    weight = nn.Parameter(torch.randn(100, 100).bfloat16())
    optimizer = stochastic(weight, lr=1e-3)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    with Largest([weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]]) as largest:
        optimizer.step()
    assert 100 <= largest.numel <= 400  # the random bits are looked at as four times as many int16


# Names ---------------------------------------------------------------------------------------------------------------


def config(optimizer: str = "adamw", **fields: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"optimizer": optimizer, "learning_rate": 1e-3, **fields})


@pytest.mark.parametrize(("name", "dtype"), [("adamw", torch.float32), ("adamw_bf16", torch.bfloat16)])
def test_what_requires_gradients_is_trained_and_matrices_alone_decay(name: str, dtype: torch.dtype):
    model = tiny_model("qwen2").to(dtype)
    model.embed.weight.requires_grad_(False)
    optimizer = make_optimizer(model, config(name, weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-6))
    assert isinstance(optimizer, StochasticAdamW if name == "adamw_bf16" else torch.optim.AdamW)
    decay = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    for parameter in model.parameters():
        expected = None if not parameter.requires_grad else 0.1 if parameter.ndim == 2 else 0.0
        assert decay.get(id(parameter)) == expected
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-6)


def test_adapters_alone_make_one_group():
    model = tiny_model("llama")
    model.requires_grad_(False)
    model.blocks[0].attention.query.weight.requires_grad_(True)
    (group,) = make_optimizer(model, config()).param_groups
    assert [one.shape for one in group["params"]] == [(64, 24)]


def test_bf16_weights_learn_a_batch_by_heart():
    """A model of bf16 weights, tied head and all, comes as far as one of fp32 masters does."""
    losses = {}
    for name, dtype in (("adamw", torch.float32), ("adamw_bf16", torch.bfloat16)):
        model = tiny_model("gemma2").to(dtype)
        model.compute_dtype = torch.float32
        optimizer = make_optimizer(model, config(name))
        pairs = random_pairs(4)
        batch, counts = pack_pairs(pairs), count_pairs(pairs)
        for _ in range(30):
            loss = orpo(model, batch, counts, config=OrpoConfig()).total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            losses.setdefault(name, []).append(loss.item())
    fp32, bf16 = losses["adamw"], losses["adamw_bf16"]
    assert bf16[-1] < 0.9 * bf16[0]
    assert bf16[0] - bf16[-1] > 0.9 * (fp32[0] - fp32[-1])


def test_bf16_weights_need_the_optimizer_that_is_made_for_them():
    with pytest.raises(ConfigError, match=r'"adamw" rounds bfloat16.*above 0\.51 would stand still.*adamw_bf16'):
        make_optimizer(tiny_model("llama").bfloat16(), config())
    with pytest.raises(ConfigError, match=r'"adamw_bf16" is for bfloat16 weights.*are float32.*"adamw"'):
        make_optimizer(tiny_model("llama"), config("adamw_bf16"))


def test_frozen_bf16_weights_are_nobodys_business():
    model = tiny_model("llama").bfloat16()
    model.requires_grad_(False)
    model.blocks[0].attention.query.weight = nn.Parameter(torch.zeros(64, 24))
    assert isinstance(make_optimizer(model, config()), torch.optim.AdamW)
    with pytest.raises(ConfigError, match=r"are float32"):
        make_optimizer(model, config("adamw_bf16"))


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_what_needs_cuda_says_so_on_a_cpu(name: str):
    with pytest.raises(ConfigError, match=rf'"{name}".*needs a CUDA device; this run is on cpu\. "adamw"'):
        make_optimizer(tiny_model("llama"), config(name))


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_missing_package_is_named_with_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=rf'"{name}".*pip install "hanlin\[cuda\]"\. "adamw"'):
        check_optimizer(name, torch.device("cuda"))


def test_what_is_named_instead_goes_with_the_weights():
    narrow = tiny_model("llama").to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"on cpu\. .*training\.optimizer=adamw_bf16$"):
        make_optimizer(narrow, config("adamw_8bit"))


def test_what_needs_no_package_is_not_refused():
    for name in ("adamw", "adamw_bf16"):
        for device in ("cpu", "cuda", "mps"):
            check_optimizer(name, torch.device(device))


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes_takes_our_arguments_and_computes_adamw(name: str):
    """Its own code on the CPU: no pages there, and that is all the difference."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    start = torch.randn(80, 100, generator=torch.Generator().manual_seed(2))
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [{"params": [theirs], "weight_decay": 0.1}]
    optimizer = module._from_bitsandbytes(groups, config(name, betas=(0.8, 0.95), epsilon=1e-6))
    assert isinstance(optimizer, bitsandbytes.optim.optimizer.Optimizer8bit)
    assert optimizer.is_paged == name.startswith("paged")
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.8, 0.95), 1e-6, 0.1)
    reference = torch.optim.AdamW([ours], lr=1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(5):
        ours.grad = random_grad(ours, step)
        theirs.grad = ours.grad.clone()
        reference.step()
        optimizer.step()
    narrow = name.endswith("8bit")
    assert optimizer.state[theirs]["state1"].dtype == (torch.uint8 if narrow else torch.float32)
    steps = (ours.detach() - start, theirs.detach() - start)
    assert (steps[0] - steps[1]).norm() < (0.1 if narrow else 1e-4) * steps[0].norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", *BITSANDBYTES])
def test_on_cuda_every_name_lowers_the_loss(name: str):
    """Not run yet."""
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = tiny_model("llama").to("cuda", torch.bfloat16 if name == "adamw_bf16" else torch.float32)
    optimizer = make_optimizer(model, config(name))
    pairs = random_pairs(4)
    losses = []
    for _ in range(20):
        loss = orpo(model, pack_pairs(pairs).to("cuda"), count_pairs(pairs), config=OrpoConfig()).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
