"""A second copy of a model that never learns: what a model in training is compared with, or what it answers with.

A copy computes what the model computes now, and takes less memory: matrices of the layers (and an untied head) are
kept in the dtype that matmuls run in, to which the model itself would round them; the embedding and the norms stay as
they are. That is 2 bytes for each number of the layers in mixed precision, and 4 for the embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hanlin.models.config import ModelConfig
from hanlin.models.lora import adapted, merged_matrix
from hanlin.models.nf4 import Nf4, packed_matrices
from hanlin.models.transformer import Transformer


@torch.no_grad()
def frozen_copy(model: Transformer, spread: Callable[[Transformer], None] = lambda copy: None) -> Transformer:
    """The copy, on the model's device, which says the same bit for bit. The model has a language model's head and no
    adapters. `spread` divides the copy, which has no memory yet, over several ranks as the model is.
    """
    given = {name: _rounded(name, one.data, model.dtype, copy=True) for name, one in model.named_parameters()}
    copy = _outline(model.config, model.dtype, given)
    spread(copy)
    return _filled(copy, given)


@torch.no_grad()
def whole_copy(model: Transformer, config: ModelConfig, whole: Callable[[str, Tensor], Tensor]) -> Transformer:
    """A copy that is put together of what several processes have each a part of, adapters merged. `config` describes
    the whole model, `whole` makes a whole parameter of the part that is here, one at a time.
    """
    here, linears, packed = dict(model.named_parameters()), adapted(model), packed_matrices(model)

    def value(name: str) -> Tensor:
        base = packed[name] if name in packed else whole(name, here[name].data)
        place = name.removesuffix(".weight")
        if (linear := linears.get(place)) is not None:
            down, up = whole(f"{place}.down", linear.down.data), whole(f"{place}.up", linear.up.data)
            return merged_matrix(base, down, up, linear.scale)
        return base.matrix() if isinstance(base, Nf4) else base

    with torch.device("meta"):
        names = [name for name, _ in Transformer(config).named_parameters()]
    given = {name: _rounded(name, value(name), model.dtype) for name in names}
    return _filled(_outline(config, model.dtype, given), given)


def _rounded(name: str, value: Tensor, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    is_rounded = value.ndim > 1 and not name.startswith("embed.")
    return value.to(dtype if is_rounded else value.dtype, copy=copy)


def _outline(config: ModelConfig, dtype: torch.dtype, given: dict[str, Tensor]) -> Transformer:
    """A model without memory, with parameters of these shapes and dtypes."""
    with torch.device("meta"):
        copy = Transformer(config)
        for name, parameter in copy.named_parameters():
            parameter.data = torch.empty(given[name].shape, dtype=given[name].dtype)
    copy.compute_dtype = dtype
    return copy.requires_grad_(False)


def _filled(copy: Transformer, given: dict[str, Tensor]) -> Transformer:
    copy.load_state_dict(given, assign=True)
    return copy.eval()
