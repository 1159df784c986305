"""A reward model: the decoder with one number instead of logits, read at the last token of an answer.

`add_score` makes one of a language model that is in memory: its head goes, and `model.score` is a map to one number. On
disk it is a directory that transformers opens as ...ForSequenceClassification with one label; there a padded row is
read at its last token that is not `pad_token_id`, which therefore must not be the stop.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hanlin.errors import CheckpointError
from hanlin.models.devices import pick_device
from hanlin.models.families import without_head
from hanlin.models.layers import Linear
from hanlin.models.transformer import Transformer
from hanlin.models.weights import fill_model, open_checkpoint, outline

_log = logging.getLogger(__name__)


def add_score(model: Transformer, *, seed: int, device: torch.device | None = None) -> None:
    """Replace the head by a fresh map to one number, in fp32, on the model's device or another: normal with variance
    1 / (width + 1), as in "Learning to summarize from human feedback" (arXiv 2009.01325, appendix B.1).
    """
    score = Linear(model.config.width, 1)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(score.weight.shape, generator=generator) * (model.config.width + 1) ** -0.5
        score.weight = torch.nn.Parameter(drawn.to(device or model.device))
    attach(model, score)


def attach(model: Transformer, score: Linear) -> None:
    """Make `score` the model's head. The embedding then gets its gradient from the lookup alone, as a dense matrix."""
    model.score, model.unembed = score, None
    model.config = without_head(model.config)
    model.embed.sparse = False


def rewards(model: Transformer, hidden_ND: Tensor) -> Tensor:
    """One number, fp32 [N], for each of N final hidden states."""
    assert model.score is not None
    return (hidden_ND.float() @ model.score.weight.float().T)[:, 0]


def load_reward_model(
    path: Path | str,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    on_note: Callable[[str], None] = _log.warning,
) -> Transformer:
    """The reward model in a directory, as `weights.load_model` reads a language model; its score is fp32.

    Raises CheckpointError for a directory without a score.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.score is None:
        raise CheckpointError(f'{path} is no reward model: it has no score.weight; train one with kind = "reward"')
    model = fill_model(outline(checkpoint, dtype=dtype, on_note=on_note), checkpoint, pick_device(device))
    score = Linear(model.config.width, 1).to(model.device)
    checkpoint.score.copy_to(score.weight.data)
    attach(model, score)
    return model.eval()
