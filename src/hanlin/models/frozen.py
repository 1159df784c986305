"""A second copy of a model that never learns: what a model in training is compared with.

The copy computes what the model computes now, bit for bit, and takes less memory: matrices of the layers (and an untied
head) are kept in the dtype that matmuls run in, to which the model itself would round them; the embedding and the norms
stay as they are. That is 2 bytes for each number of the layers in mixed precision, and 4 for the embedding.
"""

import torch

from hanlin.models.transformer import Transformer


@torch.no_grad()
def frozen_copy(model: Transformer) -> Transformer:
    """The copy, on the model's device. The model has a language model's head and no adapters."""
    copy = Transformer(model.config)
    copy.compute_dtype = model.dtype
    given = dict(model.named_parameters())
    for name, parameter in copy.named_parameters():
        value = given[name].detach()
        is_rounded = value.ndim > 1 and not name.startswith("embed.")
        parameter.data = value.to(model.dtype if is_rounded else value.dtype, copy=True)
        parameter.requires_grad_(False)
    return copy.eval()
