"""More than one process: what a rank knows of the others, and how the weights are spread over them.

`torchrun` starts the processes and names them in the environment; `joined` reads that and makes a `World`. One process
is a world of size one, in which every method returns what it was given. Counts, order and learning rate are those of
the whole step on every rank, and every loss is a sum divided by counts of the whole step: so gradients are *summed*
over ranks, never averaged, and 1, 2 or 4 ranks learn the same.

Replicated ("none"): each rank has the whole model, and the gradients are summed once, after a step's last pass. torch's
DDP is not used: it hears of a gradient when autograd hands it over, and ours are added in place (models/layers.py).
Sharded ("full"): matrices are divided over the ranks by torch's FSDP2, a layer a group; vectors (norms, biases) are
small and stay whole in fp32, because FSDP2 would round a norm's weights to the dtype of matrix products.
In teams (`tensor`): neighbouring ranks compute the same examples, each its part of every layer (training/tensor.py);
examples are divided over the teams, and each team's weights are those of one replica.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from hanlin.config import Section
from hanlin.errors import ConfigError, TrainingError
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=2)  # rank 0 may write a large model meanwhile; torchrun sees who has died
_BUCKET = 2**23  # numbers that are summed at a time: small gradients share a message
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class ParallelConfig(Section):
    """The [parallel] section: how the processes that torchrun starts share the weights. One process ignores it, and all
    of it may change when a run is resumed.
    """

    shard: Literal["auto", "none", "full"] = "auto"
    """"none": every process keeps all weights. "full": each keeps a part of every matrix, of its gradient and of its
    optimizer states (FSDP2). "auto" is "full" on CUDA and "none" on the CPU, and "none" where `tensor` is above 1.
    """
    tensor: int = Field(default=1, gt=0)
    """So many neighbouring processes compute the same examples together, each its part of every layer's heads and
    feed-forward (tensor parallelism); it must divide the number of processes.
    """


@dataclass(frozen=True, slots=True)
class World:
    """Some processes that talk to each other, and which one this is. `sharded`: weights are divided over them (FSDP2).

    The world of a run may consist of teams, which compute the same examples together: then `teams` are the ranks that
    have this one's place in every team, and `own_team` is its own, with the `mesh` that places divided tensors.
    """

    rank: int = 0
    size: int = 1
    num_local: int = 1
    sharded: bool = False
    group: dist.ProcessGroup | None = None  # left out: all processes
    mesh: DeviceMesh | None = None
    teams: "World | None" = None
    own_team: "World | None" = None

    @property
    def data(self) -> "World":
        """Those over which examples are divided."""
        return self.teams or self

    @property
    def team(self) -> "World":
        """Those that compute the same examples together."""
        return self.own_team or ALONE

    @property
    def speaks(self) -> bool:
        """True on the one rank that writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`, which is overwritten."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; it must survive pickling."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        said = [value if self.speaks else None]
        dist.broadcast_object_list(said, group=self.group, group_src=0)
        return cast(T, said[0])

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            self.gather(None)

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """Rank 0 of each machine goes through the block before the others, who find there what it has cached."""
        is_first = self.rank % self.num_local == 0
        if not is_first:
            self.wait()
        yield
        if is_first:
            self.wait()


ALONE = World()


@contextmanager
def joined(config: ParallelConfig, device: str) -> Iterator[World]:
    """The world that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun sets them), left at the end.

    `device` is the recipe's. Where another process is lost, what the others fail with becomes a TrainingError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size} is in the environment and {', '.join(missing)} is not: start the run with torchrun, or "
            "unset WORLD_SIZE"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda:"):
        raise ConfigError(
            f'training.device = "{device}" names one GPU for all {size} processes: say "cuda", or leave it out'
        )
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: torchrun --nproc-per-node="
                f'{max(1, torch.cuda.device_count())}, or training.device = "cpu"'
            )
        torch.cuda.set_device(local)
    if size % config.tensor:
        raise ConfigError(
            f"parallel.tensor = {config.tensor} does not divide the {size} processes of this run: start another number"
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=_PATIENCE)
    sharded = config.shard == "full" or (config.shard == "auto" and on_cuda and config.tensor == 1)
    world = World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", str(size))), sharded)
    try:
        yield _in_teams(world, config.tensor, "cuda" if on_cuda else "cpu")
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"rank {rank}: another process of this run is gone ({reason}): its own log says why; whole checkpoints are "
            "untouched, go on from them with --resume"
        ) from error
    dist.destroy_process_group()


def _in_teams(world: World, tensor: int, device: str) -> World:
    """The world of teams of `tensor` neighbours."""
    if tensor == 1:
        return world
    mesh = init_device_mesh(device, (world.size // tensor, tensor), mesh_dim_names=("teams", "team"))
    teams = World(world.rank // tensor, world.size // tensor, group=mesh.get_group("teams"))
    team = World(world.rank % tensor, tensor, group=mesh.get_group("team"), mesh=mesh["team"])
    return replace(world, teams=teams, own_team=team)


def recorded(function: Callable[[], T]) -> T:
    """What `function` returns. Where it fails under torchrun, the error goes into the file that torchrun reports."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function()
    return cast(T, record(function)())


def shard(model: Transformer, device: torch.device) -> None:
    """Divide every matrix over the ranks (FSDP2, arXiv 2304.11277), and move the model to `device`, but for what has no
    memory yet (device "meta"): `models.parts.fill` gives it that of this rank's rows.

    A layer is put together when it runs, forward and backward, and its gradients are summed in fp32 (or the weights'
    own dtype) when it is done. Embedding and head stay together from the forward pass until the end of the backward
    pass: the fused likelihood reads the head's weight outside any module's forward.
    """
    vectors = {parameter for parameter in model.parameters() if parameter.ndim <= 1}
    for vector in vectors:
        if not vector.is_meta:
            vector.data = vector.data.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        matrices = [parameter for parameter in block.parameters() if parameter.ndim > 1]
        masters = max((parameter.dtype for parameter in matrices), key=lambda dtype: dtype.itemsize)
        narrow = model.dtype if any(parameter.dtype != model.dtype for parameter in matrices) else None
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=masters, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=vectors)
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=whole, ignored_params=vectors, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.weights_come_and_go = True


def put_away(model: Transformer) -> None:
    """Divide again what a pass without gradients has left together; a sharded model needs it before its parameters are
    read.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has a part of it only."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; another one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All of a divided tensor, on every rank, each of which must ask; another one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_place(tensor: Tensor) -> tuple[int, int]:
    """The axis along which a sharded tensor is divided, and where this rank's part begins there."""
    assert isinstance(tensor, DTensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    [placement] = tensor.placements
    assert isinstance(placement, Shard)
    return placement.dim, offset[placement.dim] if shape[placement.dim] else 0


def sum_gradients(model: nn.Module, world: World, part: Part = WHOLE) -> None:
    """Sum the gradients of all replicas, and over a team those of which each rank has a summand; FSDP2 has summed those
    of sharded parameters.
    """
    gradients = _gradients(model)
    _sum([one for one in gradients.values() if not isinstance(one, DTensor)], world.data)
    _sum([one for name, one in gradients.items() if part.kind(name) == "partial"], world.team)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def _sum(gradients: Iterable[Tensor], world: World) -> None:
    if world.size == 1:
        return
    for bucket in _buckets(gradients):
        if len(bucket) == 1:
            world.sum(bucket[0])
            continue
        joined = world.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        for gradient, summed in zip(bucket, joined.split([one.numel() for one in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype, about `_BUCKET` numbers at a time; a large one alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        numbers = sum(one.numel() for one in bucket)
        if bucket and (bucket[0].dtype != gradient.dtype or numbers + gradient.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def clip_gradients(model: nn.Module, largest: float, world: World, part: Part = WHOLE) -> Tensor:
    """Scale all gradients so that their common norm is at most `largest`; return what it was (fp32, 0-dim). What is
    divided, over a team or by FSDP2, is counted once, and what is whole too.
    """
    if not world.sharded and part.size == 1:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    gradients = _gradients(model)
    divided = {name for name, one in gradients.items() if isinstance(one, DTensor) or part.axis(name) is not None}
    parts = [local(gradients[name]) for name in gradients if name in divided]
    whole = [gradients[name] for name in gradients if name not in divided]
    square = torch.nn.utils.get_total_norm(parts).float().square()
    square = world.sum(square) if world.sharded else world.team.sum(square)
    if whole:
        square = square + torch.nn.utils.get_total_norm(whole).float().square()
    norm = square.sqrt()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
    for gradient in (*parts, *whole):
        gradient.mul_(scale)
    return norm
