"""Tensor parallelism: neighbouring ranks compute the same examples, each its part of every layer (models/parts.py).

From outside, by hooks on a block's modules; the model has never heard of ranks. What enters a divided sub-layer is the
same everywhere, and its gradient is the sum of everybody's; what leaves it is everybody's summand, and its gradient is
the same everywhere (Megatron-LM, arXiv 1909.08053, section 3: the functions f and g). A layer so sends four messages of
a stream's size for each pass. Surprising: all ranks of a team end up with the same bits in what is not divided, because
they compute it from the same numbers. Only where each has a summand of a gradient ("partial" in the table) is it
summed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hanlin.models.parts import Part
from hanlin.models.transformer import Block, Transformer
from hanlin.training.parallel import World


class _Enter(torch.autograd.Function):
    """The same forward; backward the sum of the team's gradients."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, team: World) -> Tensor:
        ctx.team = team
        return x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return ctx.team.sum(grad_TD.clone(memory_format=torch.contiguous_format)), None


class _Leave(torch.autograd.Function):
    """The sum of the team's results forward; the same backward."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, team: World) -> Tensor:
        return team.sum(x_TD.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad_TD, None


def connect(model: Transformer, part: Part, team: World) -> None:
    """Let a divided model compute together with the rest of its team. Its maps may not be replaced any more."""
    if part.size == 1:
        return

    def enter(module: nn.Module, given: Any, x_TD: Tensor) -> Tensor:
        entered: Tensor = _Enter.apply(x_TD, team)  # pyright: ignore[reportAssignmentType]
        return entered

    def leave(module: nn.Module, given: Any, x_TD: Tensor) -> Tensor:
        left: Tensor = _Leave.apply(x_TD, team)  # pyright: ignore[reportAssignmentType]
        return left

    def choose_head(module: nn.Module, given: Any, x_TX: Tensor) -> Tensor:
        assert part.kv_head is not None
        return x_TX.narrow(-1, part.kv_head * model.config.head_dim, model.config.head_dim)

    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention_norm.register_forward_hook(enter)
        block.attention.output.register_forward_hook(leave)
        block.mlp_norm.register_forward_hook(enter)
        block.mlp.register_forward_hook(leave)
        if part.kv_head is not None:
            block.attention.key.register_forward_hook(choose_head)
            block.attention.value.register_forward_hook(choose_head)


def common(tensor: Tensor, mesh: DeviceMesh, axis: int) -> Tensor:
    """The common tensor of a team, of which this rank's `tensor` is a part of that axis."""
    return DTensor.from_local(tensor, mesh, [Shard(axis)], run_check=False)
