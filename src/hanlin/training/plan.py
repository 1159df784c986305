"""What a run will cost, before any weight is read: steps, tokens, time and memory, from the recipe, the data and the
model's header.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hanlin.models.lora import target_shapes
from hanlin.models.weights import count_parameters, open_checkpoint, pick_device
from hanlin.text.encode import check_vocabulary
from hanlin.training.fit import activation_bytes_per_token
from hanlin.training.optim import STATE_BYTES
from hanlin.training.session import Material

# Share of the machine's own matmul rate that a whole step reaches: measured 0.40 to 0.55 on 2 CPU cores
# (docs/journal.md); the GPU's is a guess.
EFFICIENCY = 0.45
_MATMUL = 1536


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of one run. Bytes and seconds; `flops_per_second` is the machine's measured matmul rate."""

    num_steps: int
    epochs: float
    stream_tokens: int
    logical_tokens: int
    num_parameters: int
    num_trained: int
    flops: float
    flops_per_second: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logit_bytes: int
    device: str

    @property
    def seconds(self) -> float:
        return self.flops / (EFFICIENCY * self.flops_per_second)

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes + self.logit_bytes

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        giga = 1e9
        saved = (
            f" ({self.logical_tokens:,} if every row were computed apart: sharing saves "
            f"{1 - self.stream_tokens / self.logical_tokens:.0%})"
        )
        shared = saved if self.stream_tokens < self.logical_tokens else ""
        yield f"{self.num_steps} steps, {self.epochs:.2f} epochs, {self.stream_tokens:,} stream tokens{shared}"
        if self.num_trained != self.num_parameters:
            yield (
                f"trains {self.num_trained:,} numbers of LoRA adapters beside {self.num_parameters:,} frozen ones "
                f"({self.num_trained / self.num_parameters:.2%})"
            )
        yield (
            f"about {_duration(self.seconds)} on {self.device}: {self.flops / 1e12:,.0f} TFLOP at {EFFICIENCY:.0%} of "
            f"{self.flops_per_second / giga:,.0f} GFLOP/s measured"
        )
        yield (
            f"about {self.memory_bytes / giga:.1f} GB: weights {self.weight_bytes / giga:.1f}, gradients "
            f"{self.gradient_bytes / giga:.1f}, "
            f"optimizer {self.optimizer_bytes / giga:.1f}, activations {self.activation_bytes / giga:.1f}, logits "
            f"{self.logit_bytes / giga:.1f}"
        )


def make_plan(material: Material) -> Plan:
    """Estimate a run. Takes about a second: the machine's matmul rate is measured."""
    training, section, lora = material.recipe.training, material.recipe.model, material.recipe.lora
    config = open_checkpoint(material.source).config
    check_vocabulary(material.tokenizer, config.vocab_size)
    device = pick_device(training.device)
    examples, objective = material.data.train, material.objective
    order, num_steps = material.order, material.num_steps
    chosen = [examples[index] for step in range(num_steps) for index in order.step(step)]
    stream = sum(example.num_tokens for example in chosen)
    scored = sum(map(objective.scored, chosen))
    parameters = count_parameters(config)
    head = config.vocab_size * config.width
    body = parameters - head * (1 if config.tied_head else 2)
    quadratic = sum(map(objective.attended, chosen))
    heads = config.num_layers * config.num_heads * config.head_dim
    rank, shapes = (0, []) if lora is None else (lora.rank, target_shapes(config, lora))
    adapters = rank * sum(map(sum, shapes))
    # Forward, gradient of the input, gradient of the weight: a frozen weight has none.
    products = (2 if lora else 3) * 2.0 * (body * stream + head * scored)
    flops = products + 3 * (2.0 * adapters * stream + 4.0 * heads * quadratic)
    compute = torch.float32 if section.compute == "float32" else torch.bfloat16
    bytes_each = 4 if section.dtype == "float32" else 2
    longest = max(example.num_tokens for example in material.data.typical)
    per_pass = min(max(training.tokens_per_pass, longest), stream // max(1, num_steps) + longest)
    # An adapted map casts its weight anew for each product, the others keep the copy until the backward pass.
    copied = parameters - sum(rows * columns for rows, columns in shapes)
    copy = copied * compute.itemsize if bytes_each != compute.itemsize else 0
    num_trained = adapters if lora else parameters
    residual = max(bytes_each, compute.itemsize)
    kept = activation_bytes_per_token(config, compute, residual=residual) + rank * len(shapes) * compute.itemsize
    return Plan(
        num_steps=num_steps,
        epochs=len(chosen) / len(examples),
        stream_tokens=stream,
        logical_tokens=sum(example.num_logical_tokens for example in chosen),
        num_parameters=parameters,
        num_trained=num_trained,
        flops=flops,
        flops_per_second=matmul_rate(device, compute),
        weight_bytes=parameters * bytes_each + copy + 4 * adapters,
        gradient_bytes=4 * adapters if lora else (parameters + head) * bytes_each,
        optimizer_bytes=int(STATE_BYTES[training.optimizer] * num_trained),
        activation_bytes=per_pass * kept,
        logit_bytes=min(per_pass * config.vocab_size * compute.itemsize, 1 << 30),
        device=str(device),
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Measured FLOP/s of square matrix products on this machine."""
    a = torch.randn(_MATMUL, _MATMUL, dtype=torch.float32, device=device).to(dtype)
    b = a.clone()
    (a @ b).float().sum().item()
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        (a @ b)[0, 0].item()
        runs += 1
    return 2 * _MATMUL**3 * runs / (time.perf_counter() - began)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
