"""How a step is computed so that it fits the memory at hand: the attention backend, the head's way through the backward
pass, and how many layers are computed twice.

None of these changes a result beyond rounding, but bit for bit they are not alike. So they are chosen once, when a run
starts, recorded with its progress, and restored when it is resumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from hanlin.models.backends import choose_backend
from hanlin.models.config import ModelConfig
from hanlin.models.lora import adapted
from hanlin.models.nf4 import packed_matrices
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import head_bytes
from hanlin.training.optim import STATE_BYTES
from hanlin.training.recipe import TrainingConfig
from hanlin.training.room import free_memory
from hanlin.types import Example

E = TypeVar("E", bound=Example)

USABLE = 0.9  # of the free memory that may be planned with: estimates are within 15%, and other programs live too


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

    `residual_bytes` is of a number of the residual stream (that of the embedding's weights). The head is `trained` or
    not; `fused` layers make the gated values again instead of keeping them; `rank` is the sum of the ranks of a
    layer's adapters; the first `frozen` layers keep nothing.
    """

    tokens: int
    predictions: int
    compute: torch.dtype
    residual_bytes: int
    head_is_trained: bool = True
    fused: bool = True
    rank: int = 0
    frozen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a pass is computed, and the bytes that it keeps for its backward pass then."""

    head: Literal["fast", "lean"]
    recomputed_layers: int
    activations: float
    logits: float


def choose_way(config: ModelConfig, training: TrainingConfig, shape: StepShape, *, room: float) -> Way:
    """The fastest way whose activations and logits fit `room` bytes. What the recipe sets is kept. Where nothing fits,
    the leanest.
    """
    size = shape.compute.itemsize
    layer = activation_bytes_per_token(config, shape.compute, residual=shape.residual_bytes, fused=shape.fused)
    layer = shape.tokens * (layer / config.num_layers + size * shape.rank)
    kept_input = shape.tokens * config.width * shape.residual_bytes
    keeping = config.num_layers - shape.frozen

    def way(head: Literal["fast", "lean"], recomputed: int) -> Way:
        mode = head if shape.head_is_trained else "frozen"
        sizes = {"vocab_size": config.vocab_size, "width": config.width, "itemsize": size}
        # While one recomputed layer goes through its backward pass, all that it would have kept exists after all.
        kept = (keeping - recomputed + min(1, recomputed)) * layer + recomputed * kept_input
        return Way(
            head=head,
            recomputed_layers=shape.frozen + recomputed if recomputed else 0,
            activations=kept,
            logits=head_bytes(mode, num_rows=shape.predictions, **sizes) if shape.predictions else 0,
        )

    heads: list[Literal["fast", "lean"]] = ["fast", "lean"] if training.head == "auto" else [training.head]
    heads = heads if shape.head_is_trained else heads[:1]
    counts = range(keeping + 1)
    if training.recomputed_layers != "auto":
        counts = [max(0, min(training.recomputed_layers, config.num_layers) - shape.frozen)]
    # A lean head costs a fourth product with the head, a recomputed layer a fourth of all products with it: the head
    # goes first where it is the cheaper of the two, and it always is the larger piece of memory.
    ways = [way(head, count) for count in counts for head in heads]
    return next((one for one in ways if one.activations + one.logits <= room), ways[-1])


def choose_fit(
    config: ModelConfig, training: TrainingConfig, shape: StepShape, *, device: torch.device, free_bytes: float
) -> Fit:
    """The fastest choices whose activations and logits fit `free_bytes`, the memory left beside weights, gradients and
    optimizer states. What the recipe sets is kept. Where nothing fits, the leanest: the allocator has the last word.
    """
    attention = choose_backend(config, device, dtype=shape.compute, backend=training.attention)
    way = choose_way(config, training, shape, room=USABLE * free_bytes)
    return Fit(
        attention=attention,
        head=way.head,
        recomputed_layers=way.recomputed_layers,
        compiled=compiles(training, device.type),
    )


def compiles(training: TrainingConfig, device: str, *, eager: bool = False) -> bool:
    """Whether layers are compiled on this kind of device; "auto" leaves those `eager` that nobody has tried."""
    return device == "cuda" and not eager if training.compile == "auto" else training.compile


def measure_fit(
    model: Transformer,
    training: TrainingConfig,
    examples: Sequence[E],
    scored_share: Callable[[E], float],
    *,
    num_local: int = 1,
    part: Part = WHOLE,
) -> Fit:
    """`choose_fit` for a loaded model, or a part of it, and the examples that it will be trained on, with the memory
    that is free now.

    `scored_share` is the share of an example's tokens whose hidden states go through the head. On a CPU the free memory
    is shared by the `num_local` ranks of the machine.
    """
    longest = max(example.num_tokens for example in examples)
    tokens = min(max(training.tokens_per_pass, longest), sum(example.num_tokens for example in examples))
    scored = max(map(scored_share, examples))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights, numbers = sum(parameter.nbytes for parameter in trained), sum(parameter.numel() for parameter in trained)
    if training.step_in_backward:  # gradients are freed at once
        weights = max(parameter.nbytes for parameter in trained)
    itemsize = model.dtype.itemsize
    copies = sum(itemsize * one.numel() for one in model.parameters() if one.ndim > 1 and one.dtype != model.dtype)
    taken = weights + STATE_BYTES[training.optimizer] * numbers + copies
    adapters, eager = adapted(model), bool(packed_matrices(model)) or part.size > 1
    compiled = compiles(training, model.device.type, eager=eager)
    shape = StepShape(
        tokens=tokens,
        predictions=round(tokens * scored),
        compute=model.dtype,
        residual_bytes=max(model.embed.weight.itemsize, itemsize),
        head_is_trained=model.head_weight.requires_grad,
        fused=not (adapters or compiled),
        rank=sum(len(one.down) for one in adapters.values()) // model.config.num_layers,
        frozen=sum(not any(one.requires_grad for one in block.parameters()) for block in model.blocks),
    )
    sharers = num_local if model.device.type == "cpu" else 1
    free = free_memory(model.device) / sharers - taken
    fit = choose_fit(model.config, training, shape, device=model.device, free_bytes=free)
    return replace(fit, compiled=compiled)


def activation_bytes_per_token(config: ModelConfig, compute: torch.dtype, *, residual: int, fused: bool = False) -> int:
    """What the backward pass needs of one token: the residual stream before each norm, `residual` bytes a number; in
    the compute dtype the input of each map, which several maps may share, what attention reads and gives (keys and
    values twice: a prefix is copied beside its segments), and both halves of the gated feed-forward. On a lent scratch
    (`fused`) their product is made again.
    """
    size = compute.itemsize
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norms = 2 * (residual + size) * config.width
    if config.post_norms:
        norms += 2 * size * config.width
    attention = size * (2 * queries + 4 * keys)
    if config.qk_norm:
        attention += size * (queries + keys)
    return config.num_layers * (norms + attention + size * (2 if fused else 3) * config.ffn_width)
