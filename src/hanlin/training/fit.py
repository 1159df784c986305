"""How a step is computed so that it fits the memory at hand: the attention backend, the head's way through the backward
pass, and how many layers are computed twice.

None of these changes a result beyond rounding, but bit for bit they are not alike. So they are chosen once, when a run
starts, recorded with its progress, and restored when it is resumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from hanlin.models.backends import choose_backend
from hanlin.models.config import ModelConfig
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import head_bytes
from hanlin.training.optim import STATE_BYTES
from hanlin.training.recipe import TrainingConfig
from hanlin.types import Example

E = TypeVar("E", bound=Example)

_SHARE = 0.9  # of the free memory that may be planned with: estimates are within 15%, and other programs live too


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The choices of one run. `recomputed_layers` counts from the first."""

    attention: str = "auto"
    head: Literal["fast", "lean"] = "fast"
    recomputed_layers: int = 0
    compiled: bool = False

    def apply(self, model: Transformer) -> None:
        """Make a model compute in this way."""
        model.attention_backend, model.head_mode = self.attention, self.head
        model.recomputed_layers = self.recomputed_layers
        if self.compiled and not model.compiled:
            model.compile_layers()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What one pass of the model holds: its stream's tokens, how many of them are predicted, and the dtypes.

    `residual_bytes` is of a number of the residual stream (that of the embedding's weights).
    """

    tokens: int
    predictions: int
    compute: torch.dtype
    residual_bytes: int


def choose_fit(
    config: ModelConfig, training: TrainingConfig, shape: StepShape, *, device: torch.device, free_bytes: float
) -> Fit:
    """The fastest choices whose activations and logits fit `free_bytes`, the memory left beside weights, gradients and
    optimizer states. What the recipe sets is kept. Where nothing fits, the leanest: the allocator has the last word.
    """
    attention = choose_backend(config, device, dtype=shape.compute, backend=training.attention)
    layer = shape.tokens * activation_bytes_per_token(config, shape.compute, residual=shape.residual_bytes)
    layer /= config.num_layers
    kept_input = shape.tokens * config.width * shape.residual_bytes
    room = _SHARE * free_bytes

    def needed(head: Literal["fast", "lean"], recomputed: int) -> float:
        logits = head_bytes(
            head,
            num_rows=shape.predictions,
            vocab_size=config.vocab_size,
            width=config.width,
            itemsize=shape.compute.itemsize,
        )
        # While one recomputed layer goes through its backward pass, all that it would have kept exists after all.
        return logits + (config.num_layers - recomputed + min(1, recomputed)) * layer + recomputed * kept_input

    compiled = device.type == "cuda" if training.compile == "auto" else training.compile
    heads: list[Literal["fast", "lean"]] = ["fast", "lean"] if training.head == "auto" else [training.head]
    counts = range(config.num_layers + 1)
    if training.recomputed_layers != "auto":
        counts = [min(training.recomputed_layers, config.num_layers)]
    # A lean head costs a fourth product with the head, a recomputed layer a fourth of all products with it: the head
    # goes first where it is the cheaper of the two, and it always is the larger piece of memory.
    options: list[tuple[Literal["fast", "lean"], int]] = [(head, count) for count in counts for head in heads]
    fitting = (option for option in options if needed(*option) <= room)
    head, count = next(fitting, options[-1])
    return Fit(attention=attention, head=head, recomputed_layers=count, compiled=compiled)


def measure_fit(
    model: Transformer, training: TrainingConfig, examples: Sequence[E], scored_share: Callable[[E], float]
) -> Fit:
    """`choose_fit` for a loaded model and the examples that it will be trained on, with the memory that is free now.

    `scored_share` is the share of an example's tokens whose hidden states go through the head.
    """
    longest = max(example.num_tokens for example in examples)
    tokens = min(max(training.tokens_per_pass, longest), sum(example.num_tokens for example in examples))
    scored = max(map(scored_share, examples))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights, numbers = sum(parameter.nbytes for parameter in trained), sum(parameter.numel() for parameter in trained)
    itemsize = model.dtype.itemsize
    copies = sum(itemsize * one.numel() for one in model.parameters() if one.ndim > 1 and one.dtype != model.dtype)
    taken = weights + STATE_BYTES[training.optimizer] * numbers + copies
    shape = StepShape(
        tokens=tokens,
        predictions=round(tokens * scored),
        compute=model.dtype,
        residual_bytes=max(model.embed.weight.itemsize, itemsize),
    )
    free = free_memory(model.device) - taken
    return choose_fit(model.config, training, shape, device=model.device, free_bytes=free)


def activation_bytes_per_token(config: ModelConfig, compute: torch.dtype, *, residual: int) -> int:
    """What the backward pass needs of one token: the residual stream before each norm, `residual` bytes a number; in
    the compute dtype the input of each map, which several maps may share, what attention reads and gives (keys and
    values twice: a prefix is copied beside its segments), and both halves of the gated feed-forward.
    """
    size = compute.itemsize
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norms = 2 * (residual + size) * config.width
    if config.post_norms:
        norms += 2 * size * config.width
    attention = size * (2 * queries + 4 * keys)
    if config.qk_norm:
        attention += size * (queries + keys)
    return config.num_layers * (norms + attention + size * 3 * config.ffn_width)


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still get: on the device, or of the machine; infinite where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    described = Path("/proc/meminfo")
    if not described.exists():
        return float("inf")
    lines = dict(line.split(":", 1) for line in described.read_text(encoding="ascii").splitlines())
    return 1024.0 * int(lines["MemAvailable"].split()[0])
