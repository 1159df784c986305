"""LoRA (arXiv 2106.09685): the weights stay as they are, and each chosen map learns a difference of small rank.

`W x` becomes `W x + s B (A x)`, with A [R, in] drawn at random, B [out, R] zero and s = alpha / rank: a fresh adapter
changes nothing, bit for bit. What may surprise: the adapters are fp32 even where W is bf16, so that small steps are not
rounded away; nobody else has to know of them, since `LoraLinear` has a `Linear`'s attributes and its `matrix()`
gives inference the sum; there is no dropout, because the two answers of a pair share the prompt's activations and
would have to share its noise; and W may be packed in four bits (models/nf4.py: QLoRA), which `merge` then unpacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hanlin.config import Section
from hanlin.errors import ConfigError
from hanlin.models.config import ModelConfig
from hanlin.models.layers import Linear
from hanlin.models.nf4 import Nf4, Nf4Linear, in_dtype
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Hugging Face's names, which PEFT and LLaMA-Factory take, and where these maps are in a block of ours.
TARGETS: dict[Target, str] = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "attention.output",
    "gate_proj": "mlp.gate",
    "up_proj": "mlp.up",
    "down_proj": "mlp.down",
}


class LoraConfig(Section):
    """The [lora] section: train adapters of small rank, not the weights. They want about ten times the learning rate
    that the weights would (Schulman et al., "LoRA Without Regret", thinkingmachines.ai/blog/lora, 2025).
    """

    rank: int = Field(default=16, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    """The difference is scaled by alpha / rank. Left out: twice the rank, as in LLaMA-Factory, where most recipes for
    Chinese chat models come from; PEFT's own default is 8 at rank 8.
    """
    targets: Literal["all-linear"] | Annotated[tuple[Target, ...], Field(min_length=1)] = "all-linear"
    """Which maps, by Hugging Face's names; "all-linear" is every one but the head (arXiv 2305.14314, section 4: what it
    takes to match full fine-tuning).
    """

    rslora: bool = False
    """Divide alpha by the root of the rank instead (arXiv 2312.03732), so that large ranks learn as fast as small ones;
    say `alpha` with it.
    """

    @property
    def alpha_value(self) -> float:
        """alpha, or what stands for it."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """s, the factor of the difference."""
        return self.alpha_value / (self.rank**0.5 if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """A `Linear` with an adapter: `y = x Wᵀ (+ b) + s (x Aᵀ) Bᵀ` for x [T, in], in x's dtype.

    `weight` and `bias` are the frozen ones, W perhaps in four bits; `down` is A [R, in] and `up` is B [out, R], both
    fp32.
    """

    def __init__(self, linear: Linear | Nf4Linear, down: Tensor, up: Tensor, *, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Adapted.apply(x, self.weight, self.bias, self.down, self.up, self.scale)  # pyright: ignore
        return y

    def merged(self) -> Tensor:
        """W + s B A in fp32 [out, in], without gradients."""
        return _sum(self.weight, self.down, self.up, self.scale)

    def matrix(self) -> Tensor:
        """The merged matrix as inference uses it."""
        return merged_matrix(self.weight, self.down, self.up, self.scale)


def merged_matrix(weight: Tensor | Nf4, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + s B A in W's dtype, fp32 where that is four bits; without gradients."""
    merged = _sum(weight, down, up, scale)
    return merged if isinstance(weight, Nf4) else merged.to(weight.dtype)


def _sum(weight: Tensor | Nf4, down: Tensor, up: Tensor, scale: float) -> Tensor:
    return torch.addmm(in_dtype(weight, torch.float32).detach(), up.detach(), down.detach(), alpha=scale)


class _Adapted(torch.autograd.Function):
    """The map above for T rows of width I, giving width O; R is the rank.

    Kept for the backward pass are x, which the maps of one input share, and x Aᵀ. W gets no gradient and is not kept in
    the compute dtype: where that is another one, it is cast, or unpacked, again.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight: Tensor | Nf4, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        dtype = x_TI.dtype
        narrow_TR = x_TI @ down.to(dtype).T
        y_TO = F.linear(x_TI, in_dtype(weight, dtype), None if bias is None else bias.to(dtype))
        y_TO.addmm_(narrow_TR, (up * scale).to(dtype).T)
        ctx.save_for_backward(x_TI, narrow_TR, down, up)
        ctx.weight, ctx.scale = weight, scale
        return y_TO

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x_TI, narrow_TR, down, up = ctx.saved_tensors
        dtype = grad_TO.dtype
        grad_narrow_TR = grad_TO @ (up * ctx.scale).to(dtype)
        grad_x_TI = None
        if ctx.needs_input_grad[0]:  # not so in the first block: nothing below it learns
            grad_x_TI = (grad_TO @ in_dtype(ctx.weight, dtype)).addmm_(grad_narrow_TR, down.to(dtype))
        grad_down = (grad_narrow_TR.T @ x_TI).to(down.dtype)
        grad_up = (grad_TO.T @ narrow_TR).to(up.dtype).mul_(ctx.scale)
        return grad_x_TI, None, None, grad_down, grad_up, None


def add_lora(
    model: Transformer, config: LoraConfig, *, seed: int, part: Part = WHOLE, device: torch.device | None = None
) -> None:
    """Freeze the model, embedding and norms included, and put a fresh adapter on each target, on its device or another.

    A is uniform in ±1 / sqrt(in), as in the authors' code (microsoft/LoRA at a0a92e0, loralib/layers.py: Kaiming with
    a = sqrt(5)) and in PEFT; the same numbers on every device, and in every `part` of the model. Raises ConfigError
    where the model has adapters already.
    """
    if adapted(model):
        raise ConfigError("the model has LoRA adapters already; call merge_lora(model) first, or load it anew")
    model.requires_grad_(False)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for place, linear in list(_targets(model, config)):
        out_width, in_width = linear.weight.shape
        in_width *= part.share(f"{place}.down")
        bound = in_width**-0.5
        down = torch.empty(config.rank, in_width, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        down = part.take(f"{place}.down", down)
        up = torch.zeros(out_width, config.rank, dtype=torch.float32)
        there = device or linear.weight.device
        path, _, name = place.rpartition(".")
        adapter = LoraLinear(linear, down.to(there), up.to(there), scale=config.scale)
        setattr(model.get_submodule(path), name, adapter)


@torch.no_grad()
def merge_lora(model: Transformer) -> None:
    """Make a plain model of it: W + s B A, computed in fp32 and rounded to W's dtype once; all of it can learn again.

    A bf16 W keeps 8 bits of each sum: the merged model is equal to the adapted one up to that rounding. What was in
    four bits has the embedding's dtype after, and takes the memory of it.
    """
    packed = {name: one for name, one in model.named_modules() if isinstance(one, Nf4Linear)}
    for name, linear in (adapted(model) | packed).items():
        with torch.device("meta"):
            plain = Linear(1, 1)
        made = linear.merged() if isinstance(linear, LoraLinear) else linear.matrix()
        if isinstance(linear.weight, Nf4):
            plain.weight = nn.Parameter(made.to(model.embed.weight.dtype))
        else:
            plain.weight = linear.weight
            plain.weight.copy_(made)
        plain.bias = linear.bias
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, plain)
    model.requires_grad_(True)


def adapted(model: Transformer) -> dict[str, LoraLinear]:
    """The maps that have adapters, by name; empty for a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def lora_parameters(model: Transformer) -> list[nn.Parameter]:
    """A and B of every adapter, in the model's order: all that learns after `add_lora`."""
    return [parameter for linear in adapted(model).values() for parameter in (linear.down, linear.up)]


@contextmanager
def without_adapters(model: Transformer) -> Iterator[None]:
    """While it lasts, a model with adapters computes what it did before it had them, bit for bit."""
    scales = {linear: linear.scale for linear in adapted(model).values()}
    try:
        for linear in scales:
            linear.scale = 0.0
        yield
    finally:
        for linear, scale in scales.items():
            linear.scale = scale


def target_shapes(model_config: ModelConfig, config: LoraConfig) -> list[tuple[int, int]]:
    """(out, in) of every matrix that would get an adapter; takes no memory."""
    with torch.device("meta"):
        model = Transformer(model_config)
    shapes = [linear.weight.shape for _, linear in _targets(model, config)]
    return [(out_width, in_width) for out_width, in_width in shapes]


def _targets(model: Transformer, config: LoraConfig) -> Iterator[tuple[str, Linear | Nf4Linear]]:
    """Each targeted map with its name in the model; in one order, however the targets are written."""
    for layer in range(model.config.num_layers):
        for target, place in TARGETS.items():
            if config.targets == "all-linear" or target in config.targets:
                name = f"blocks.{layer}.{place}"
                linear = model.get_submodule(name)
                assert isinstance(linear, Linear | Nf4Linear)
                yield name, linear
