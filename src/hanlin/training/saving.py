"""Checkpoints of several ranks, written while training goes on.

A save stops training for copies in memory alone: each rank copies its part of the state, into memory that was there
before (fresh memory costs several times the copy). Then a thread of each rank writes; when everybody's files are there,
rank 0 makes the model directory of them and renames, so that what has a visible name is whole (training/checkpoint.py).
One save at a time: the next one waits for the last.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hanlin.errors import CheckpointError, TrainingError
from hanlin.models.transformer import Transformer
from hanlin.training.checkpoint import (
    Progress,
    abandoned,
    begin,
    complete,
    failure_reason,
    forget,
    note_optimizer,
    own_state,
    place_of,
    read_weights,
    write_shards,
)
from hanlin.training.division import Division
from hanlin.training.optim import begin_states
from hanlin.training.parallel import local


class Twin:
    """The whole model for rank 0 to write, on the CPU, of which nothing is there before the first use, and between two
    uses only what is frozen. Made before the model is sharded or connected.
    """

    def __init__(self, model: Transformer, division: Division) -> None:
        self._division = division
        self._has_frozen = False
        self._twin: Transformer | None = None
        if division.world.speaks:
            memo: dict[int, Any] = {
                id(one): nn.Parameter(one.data.new_empty(0, device="cpu"), one.requires_grad)
                for one in model.parameters()
            }
            self._twin = copy.deepcopy(model, memo)
            self._twin.config = division.part.widened(model.config)

    def gather(self, model: Transformer) -> Transformer | None:
        """Put together the model as it is; every rank calls this, and rank 0 gets the twin.

        On the CPU what is not divided is not copied.
        """
        self.keep_frozen(model)
        self._gather(model, frozen=False)
        return self._twin

    def keep_frozen(self, model: Transformer) -> None:
        """Put together what is frozen, and keep it; every rank calls this."""
        if not self._has_frozen:
            self._gather(model, frozen=True)
            self._has_frozen = True

    @torch.no_grad()
    def _gather(self, model: Transformer, *, frozen: bool) -> None:
        places = {} if self._twin is None else dict(self._twin.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad is frozen:
                continue
            value = self._division.whole(name, parameter.data)
            if places:
                places[name].data = value.cpu()

    def read(self, partial: Path) -> Transformer | None:
        """On rank 0 the model as the ranks have just written it; `clear` it afterwards."""
        if self._twin is not None:
            self._put(read_weights(partial))
        return self._twin

    def clear(self) -> None:
        """Let what is trained go."""
        if self._twin is not None:
            trained = {name: one for name, one in self._twin.named_parameters() if one.requires_grad}
            self._put({name: one.data.new_empty(0) for name, one in trained.items()})

    def _put(self, tensors: dict[str, Tensor]) -> None:
        assert self._twin is not None
        places = dict(self._twin.named_parameters())
        for name, tensor in tensors.items():
            places[name].data = tensor


class Staging:
    """Copies on the CPU of what a rank writes; their memory is the same from save to save."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}

    @torch.no_grad()
    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The copies, valid until the next call; parts of divided tensors are parts there too."""
        for name, tensor in tensors.items():
            known = self._copies.get(name)
            if known is None or known.shape != tensor.shape or known.dtype != tensor.dtype:
                known = self._copies[name] = self._room(tensor)
            local(known).copy_(local(tensor))
        return {name: self._copies[name] for name in tensors}

    def _room(self, tensor: Tensor) -> Tensor:
        own = local(tensor)
        room = torch.empty(own.shape, dtype=own.dtype)
        if not isinstance(tensor, DTensor):
            return room
        mesh = tensor.device_mesh
        if mesh not in self._meshes:
            on_cpu = mesh.device_type == "cpu"
            self._meshes[mesh] = mesh if on_cpu else DeviceMesh.from_group(mesh.get_group(), "cpu")
        given = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
        return DTensor.from_local(room, self._meshes[mesh], tensor.placements, **given)


class Saver:
    """Saves one run of several ranks. Every method is called by all of them, in the same order.

    `write_model` writes a model directory of the model that it is given; rank 0 is asked, with the `twin`.
    """

    def __init__(
        self,
        run: Path,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        *,
        twin: Twin,
        division: Division,
        write_model: Callable[[Path, Transformer], None],
        keep_last: int,
    ) -> None:
        self._run, self._world = run, division.world
        self._model, self._optimizer, self._twin, self._division = model, optimizer, twin, division
        self._write_model, self._keep_last = write_model, keep_last
        group = dist.new_group(backend="gloo")  # of the background: it must not get between training's messages
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._staging = Staging()
        self._thread: Thread | None = None
        self._failure = ""

    def save(self, progress: Progress, on_saved: Callable[[Path], None]) -> Path:
        """Copy the state and begin to write; `on_saved` is told, by rank 0's thread, when the checkpoint is whole.

        Raises TrainingError where the save before could not be written.
        """
        self.settle()
        partial = self._world.agree(self._begun(progress))
        if self._world.speaks:
            note_optimizer(partial, self._model, self._optimizer)
        staged = self._stage()
        self._thread = Thread(target=self._finish, args=(progress, partial, staged, on_saved))
        self._thread.start()
        return place_of(self._run, progress)

    def warm_up(self) -> None:
        """Take the memory of a save before training begins, and with it that of the optimizer's states."""
        begin_states(self._optimizer)
        self._stage()

    def _stage(self) -> dict[str, Tensor]:
        self._twin.keep_frozen(self._model)
        return self._staging.copy(own_state(self._model, self._optimizer, self._world, self._division.placed))

    def _begun(self, progress: Progress) -> Path:
        if not self._world.speaks:
            return Path()
        try:
            return begin(self._run, progress)
        except OSError as error:
            raise abandoned(self._run, progress, failure_reason(error)) from None

    def settle(self) -> None:
        """Wait for what is being written. Raises TrainingError, on every rank, where it cannot be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failures = [failure for failure in self._world.gather(self._failure) if failure]
        if failures:
            raise TrainingError(failures[0])

    def _finish(
        self, progress: Progress, partial: Path, staged: dict[str, Tensor], on_saved: Callable[[Path], None]
    ) -> None:
        """In the background: write this rank's part; once all are on the disk, rank 0 makes a checkpoint of them."""
        try:
            write_shards(partial, staged, self._group)
            if (whole := self._twin.read(partial)) is not None:
                self._write_model(partial, whole)
                self._twin.clear()
                complete(self._run, progress)
                forget(self._run, keep_last=self._keep_last)
                on_saved(place_of(self._run, progress))
        except (OSError, CheckpointError) as error:
            self._failure = str(abandoned(self._run, progress, failure_reason(error)))
        except CheckpointException as error:
            reasons = [failure for failure, _ in error.failures.values()]
            reason = failure_reason(reasons[0]) if isinstance(reasons[0], OSError) else str(reasons[0])
            self._failure = str(abandoned(self._run, progress, reason))
        except BaseException as error:  # a thread's error would be lost
            self._failure = f"the checkpoint of step {progress.step} could not be written: {error!r}"
