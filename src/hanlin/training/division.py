"""How one model is divided over the ranks of a run, as a value: what a rank reads of it, and how it is put together.

Two ways, and never both: rows of every matrix over all ranks (FSDP2, training/parallel.py), or parts of every layer
over a team (training/tensor.py). Where a model is whole on each rank, everything here gives back what it was given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hanlin.models.frozen import whole_copy
from hanlin.models.parts import WHOLE, Part, Stored, read_slice
from hanlin.models.transformer import Transformer
from hanlin.training.parallel import ALONE, World, gathered, is_sharded, local, local_place, put_away, shard
from hanlin.training.tensor import common, connect


@dataclass(frozen=True, slots=True)
class Division:
    """The ranks of a run, and the `part` of every layer that this one computes in its team."""

    world: World = ALONE
    part: Part = WHOLE

    def spread(self, model: Transformer, device: torch.device) -> None:
        """Make a model one of all ranks; it may be without memory (device "meta"). Its maps may not be replaced any
        more.
        """
        connect(model, self.part, self.world.team)
        if self.world.sharded:
            shard(model, device)

    def read(self, name: str, stored: Stored, out: Tensor) -> None:
        """Fill what this rank keeps of a parameter; as `models.parts.fill` asks."""
        if is_sharded(out):
            axis, first = local_place(out)
            read_slice(stored, local(out), axis, first)
        else:
            self.part.read(name, stored, out)

    def placed(self, name: str, tensor: Tensor) -> Tensor:
        """A divided parameter (or what an optimizer keeps of it, of its shape) as the common tensor of the ranks, of
        which this one's memory is a part. Anything else as it is.
        """
        axis, mesh = self.part.axis(name), self.world.team.mesh
        return tensor if axis is None or mesh is None or tensor.ndim <= axis else common(tensor, mesh, axis)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """All of a parameter, on every rank; all must ask."""
        return gathered(self.placed(name, tensor))

    def rows(self, matrix: Tensor, indices: Sequence[int]) -> Tensor:
        """Some rows of a matrix that is whole in every team; all ranks must ask."""
        if not is_sharded(matrix):
            return matrix[list(indices)]
        here, (_, first) = local(matrix), local_place(matrix)
        found = here.new_zeros(len(indices), matrix.shape[1])
        for place, index in enumerate(indices):
            if first <= index < first + len(here):
                found[place] = here[index - first]
        return self.world.sum(found)

    @contextmanager
    def edited(self, matrix: Tensor) -> Iterator[Tensor]:
        """All of such a matrix, to be changed in place on every rank."""
        whole = gathered(matrix)
        yield whole
        if is_sharded(matrix):
            here, (_, first) = local(matrix), local_place(matrix)
            here.copy_(whole[first : first + len(here)])

    def assembled(self, model: Transformer) -> Transformer:
        """The whole model for inference, on every rank: a copy in the dtype of matrix products where it is divided, all
        that is needed of its adapters merged. All ranks must ask.
        """
        if not self.world.sharded and self.part.size == 1:
            return model
        put_away(model)
        return whole_copy(model, self.part.widened(model.config), self.whole)


UNDIVIDED = Division()
