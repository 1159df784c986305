"""What a run will cost, before any weight is read: steps, tokens, time and memory, from the recipe, the data and the
model's header.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hanlin.models.config import ModelConfig
from hanlin.models.weights import count_parameters, open_checkpoint, pick_device
from hanlin.text.encode import check_vocabulary
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
        yield (
            f"{self.num_steps} steps, {self.epochs:.2f} epochs, {self.stream_tokens:,} stream tokens "
            f"({self.logical_tokens:,} if every row were computed apart: sharing saves "
            f"{1 - self.stream_tokens / self.logical_tokens:.0%})"
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
    training, section = material.recipe.training, material.recipe.model
    config = open_checkpoint(material.source).config
    check_vocabulary(material.tokenizer, config.vocab_size)
    device = pick_device(training.device)
    pairs = material.data.train
    order, num_steps = material.order, material.num_steps
    chosen = [pairs[index] for step in range(num_steps) for index in order.step(step)]
    stream = sum(pair.num_tokens for pair in chosen)
    scores_prompt = material.recipe.objective.scores_prompt
    scored = sum(len(pair.chosen) + len(pair.rejected) + (len(pair.prompt) if scores_prompt else 0) for pair in chosen)
    parameters = count_parameters(config)
    head = config.vocab_size * config.width
    body = parameters - head * (1 if config.tied_head else 2)
    quadratic = sum(_attention_tokens(len(p.prompt), len(p.chosen), len(p.rejected)) for p in chosen)
    heads = config.num_layers * config.num_heads * config.head_dim
    flops = 3 * (2.0 * body * stream + 2.0 * head * scored + 4.0 * heads * quadratic)
    compute = torch.float32 if section.compute == "float32" else torch.bfloat16
    bytes_each = 4 if section.dtype == "float32" else 2
    longest = max(pair.num_tokens for pair in pairs)
    per_pass = min(max(training.tokens_per_pass, longest), stream // max(1, num_steps) + longest)
    copy = parameters * compute.itemsize if bytes_each != compute.itemsize else 0
    return Plan(
        num_steps=num_steps,
        epochs=len(chosen) / len(pairs),
        stream_tokens=stream,
        logical_tokens=sum(pair.num_logical_tokens for pair in chosen),
        num_parameters=parameters,
        flops=flops,
        flops_per_second=matmul_rate(device, compute),
        weight_bytes=parameters * bytes_each + copy,
        gradient_bytes=parameters * bytes_each + head * bytes_each,
        optimizer_bytes=2 * parameters * bytes_each,
        activation_bytes=int(per_pass * activation_bytes_per_token(config, compute)),
        logit_bytes=min(per_pass * config.vocab_size * compute.itemsize, 1 << 30),
        device=str(device),
    )


def activation_bytes_per_token(config: ModelConfig, compute: torch.dtype) -> float:
    """What the backward pass needs of one token: the fp32 residuals that the norms keep, and each matmul's input in the
    compute dtype.
    """
    size = compute.itemsize
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norms = 2 * (8 * config.width + size * config.width)
    if config.post_norms:
        norms += 2 * 4 * config.width
    attention = size * (2 * queries + 4 * keys + 2 * queries)
    return config.num_layers * (norms + attention + size * 4 * config.ffn_width)


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


def _attention_tokens(prompt: int, chosen: int, rejected: int) -> float:
    """Query-key products of a pair that shares its prompt."""
    return prompt**2 / 2 + prompt * (chosen + rejected) + chosen**2 / 2 + rejected**2 / 2


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
