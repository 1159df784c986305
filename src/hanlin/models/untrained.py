"""Rows of the vocabulary that a base model never trained, and a start for them.

Llama 3's base model has the control pieces of its chat format, but their rows of the embedding and of the head are zero
or nearly so: what is said through them is noise, and an adapter cannot learn them at all. A row counts as untrained
where its norm is less than a hundredth of the usual one, or where it equals another control piece's bit for bit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from hanlin.models.transformer import Transformer

_SMALL = 0.01
_SAMPLED = 512  # rows from which the usual norm is taken
_CHUNK = 8192


def _rows_of(matrix: Tensor, indices: Sequence[int]) -> Tensor:
    return matrix[list(indices)]


def untrained_rows(rows_of: Callable[[Sequence[int]], Tensor], num_rows: int, ids: Sequence[int]) -> list[int]:
    """Which of `ids` name untrained rows of a matrix [V, D]; `rows_of` reads some of its V = `num_rows` rows."""
    sampled = range(0, num_rows, max(1, num_rows // _SAMPLED))
    usual = rows_of(sampled).float().norm(dim=1).median()
    wanted = [id for id in dict.fromkeys(ids) if id < num_rows]
    if not wanted:
        return []
    rows = rows_of(wanted).float()
    equal = (rows[:, None] == rows[None]).all(dim=2).sum(dim=1) > 1
    found = (rows.norm(dim=1) < _SMALL * usual) | equal
    return [id for id, is_untrained in zip(wanted, found.tolist(), strict=True) if is_untrained]


def untrained_in(
    model: Transformer, ids: Sequence[int], rows_of: Callable[[Tensor, Sequence[int]], Tensor] = _rows_of
) -> dict[str, list[int]]:
    """The untrained rows of the model's embedding, and of its head where that is a matrix of its own. `rows_of` takes
    some rows of a matrix.
    """
    found: dict[str, list[int]] = {}
    for name, weight in _matrices(model).items():
        if rows := untrained_rows(partial(rows_of, weight), len(weight), ids):
            found[name] = rows
    return found


@torch.no_grad()
def initialise_rows(
    model: Transformer,
    untrained: dict[str, list[int]],
    edited: Callable[[Tensor], AbstractContextManager[Tensor]] = nullcontext,
) -> None:
    """Give each of these rows the mean of the trained ones of its matrix (Hewitt, "Initializing New Word Embeddings for
    Pretrained Language Models", nlp.stanford.edu/~johnhew/vocab-expansion.html, 2021).

    Rows of less than a hundredth of the usual norm are left out of the mean. No random number is used. `edited` gives
    a matrix whole while it is changed.
    """
    for name, ids in untrained.items():
        with edited(_matrices(model)[name]) as weight:
            weight[ids] = _mean_row(weight, ids).to(weight.dtype)


def _mean_row(weight: Tensor, ids: Sequence[int]) -> Tensor:
    """The mean of the trained rows but these, fp64 [D]."""
    norms = torch.cat([chunk.float().norm(dim=1) for chunk in weight.split(_CHUNK)])
    trained = norms >= _SMALL * norms.median()
    trained[list(ids)] = False
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for chunk, keep in zip(weight.split(_CHUNK), trained.split(_CHUNK), strict=True):
        total += chunk[keep].double().sum(dim=0)
    return total / trained.sum()


def _matrices(model: Transformer) -> dict[str, Tensor]:
    """By Hugging Face's names; a tied head is the embedding."""
    matrices = {"embed_tokens": model.embed.weight.data}
    if model.unembed is not None:
        matrices["lm_head"] = model.unembed.weight.data
    return matrices
