"""Log-probabilities of the scored tokens, computed through the model's head without ever holding fp32 logits.

Only stream positions that predict something reach the head. A prediction needs its logits z once: softmax turns them
into `d = (p - onehot(target)) * slope of the soft-cap`, in fp32 while a few rows are in the cache. Everything that the
backward pass wants is linear in d and in one number per prediction that only the finished loss knows, c = d loss / d
logp:  d hidden = -c (d W),  d W = -dᵀ (c hidden).  So there are three ways through the backward pass, with these peaks
beside weights and gradients (U predictions, V words, R rows of a chunk, b bytes an element):

    frozen   the head is not trained: d W is formed in the forward pass      b U D + b R V    2 products
    fast     d is kept                                                       b U V            3 products
    lean     d is formed again in the backward pass, R rows at a time        b R V            4 products

In fp32 the numbers are the same. In bf16 `fast` rounds both d and c hidden, `lean` only c d: its weight gradient has up
to 1.4 times the rounding noise.

What is wanted of the logits is a `Reduce`: here the targets' log-probabilities, elsewhere another number for each
prediction (objectives/distillation.py) with another d, which goes the same three ways.
"""

from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hanlin.models.backends import segment_attention
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.types import Batch

Mode = Literal["frozen", "fast", "lean"]

CHUNK_ROWS = 1024  # R: predictions of one product with the head, where d is not kept
SLAB_WORDS = 1 << 15  # vocabulary rows of the head's gradient that exist in the compute dtype at a time
PIECE_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}  # fp32 logits at a time in the softmax; on a CPU they stay in the cache


class Reduce(Protocol):
    """Turns raw logits [R, V] of the predictions `rows` into one fp32 number each, [R].

    With `differentiate` the logits become, in place, d = -(d number / d logits), times `factor_R1` where it is given.
    """

    def __call__(
        self, logits_RV: Tensor, rows: slice, /, *, differentiate: bool, factor_R1: Tensor | None = None
    ) -> Tensor: ...


def token_logprobs(model: Transformer, hidden_TD: Tensor, predictor_N: Tensor, target_N: Tensor) -> Tensor:
    """log p(target | stream up to predictor) in fp32 [N] for hidden states [T, D] of the model's stream.

    Soft-cap included; differentiable in the hidden states and, unless it is frozen, in the head's weight. Equal to
    `model.head(hidden)[predictor].log_softmax(-1)[target]`, which the tests check with logits well beyond the cap.
    """
    row_N = None
    if (
        hidden_TD.device.type == "cpu"
    ):  # two answers that begin alike list the same predictions twice; finding them syncs
        both_N = predictor_N * model.config.vocab_size + target_N
        both_U, row_N = torch.unique(both_N, return_inverse=True)
        predictor_N, target_N = both_U // model.config.vocab_size, both_U % model.config.vocab_size
    reduce = partial(_likelihood, target_N, model.config.logit_cap)
    logp_U = head_values(model, hidden_TD.index_select(0, predictor_N), reduce)
    return logp_U if row_N is None else logp_U.index_select(0, row_N)


def head_values(model: Transformer, hidden_UD: Tensor, reduce: Reduce) -> Tensor:
    """What `reduce` makes of the head's logits, fp32 [U]; differentiable in the hidden states and, unless it is frozen,
    in the head's weight. The logits of all U predictions exist at once in the mode "fast" only.
    """
    weight_VD = model.head_weight
    # Inside an autograd function gradients always look disabled, so whether there will be a backward pass is said here.
    mode = model.head_mode if weight_VD.requires_grad else "frozen"
    value_U: Tensor = _HeadValues.apply(  # pyright: ignore[reportAssignmentType]
        hidden_UD, weight_VD, reduce, model.scratch, mode if torch.is_grad_enabled() else None
    )
    return value_U


def head_bytes(mode: Mode, *, num_rows: int, vocab_size: int, width: int, itemsize: int) -> int:
    """Peak memory of the head for U = `num_rows` predictions, beside weights and gradients: the table above."""
    chunk = itemsize * min(num_rows, CHUNK_ROWS) * vocab_size
    return {
        "frozen": itemsize * num_rows * width + chunk,
        "fast": itemsize * num_rows * vocab_size,
        "lean": chunk,
    }[mode]


def batch_hidden(model: Transformer, batch: Batch) -> Tensor:
    """Hidden states [T, D] of a batch's stream: one forward pass."""
    attend = segment_attention(
        model.config,
        batch.segments,
        batch.positions_T,
        batch.tokens_T.device,
        dtype=model.dtype,
        backend=model.attention_backend,
    )
    return model.hidden(batch.tokens_T, batch.positions_T, attend)


def batch_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """Log-probability [N], fp32, of every scored token of a batch: one forward pass over the stream."""
    return token_logprobs(model, batch_hidden(model, batch), batch.predictor_N, batch.target_N)


def span_sums(logp_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of log-probabilities and number of tokens of each scored span, both fp32 [num_spans]."""
    zeros = torch.zeros(batch.num_spans, dtype=torch.float32, device=logp_N.device)
    return zeros.index_add(0, batch.span_N, logp_N), zeros.index_add(0, batch.span_N, torch.ones_like(logp_N))


class _HeadValues(torch.autograd.Function):
    """Fused head and reduction of U predictions; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, hidden_UD: Tensor, weight_VD: Tensor, reduce: Reduce, scratch: Scratch | None, mode: Mode | None
    ) -> Tensor:
        room = scratch or Scratch()
        compute_VD = room.cast(weight_VD, hidden_UD.dtype)
        value_U = hidden_UD.new_empty(len(hidden_UD), dtype=torch.float32)
        slope_UD = torch.empty_like(hidden_UD) if mode == "frozen" else None
        kept_UV = None
        for rows in [slice(0, len(hidden_UD))] if mode == "fast" else chunks(len(hidden_UD)):
            logits_RV = raw_logits(hidden_UD[rows], compute_VD, room)
            value_U[rows] = reduce(logits_RV, rows, differentiate=mode in ("frozen", "fast"))
            if slope_UD is not None:
                torch.mm(logits_RV, compute_VD, out=slope_UD[rows])
            kept_UV = logits_RV if mode == "fast" else None
            del logits_RV  # the next chunk takes the same buffer
        if mode == "frozen":
            ctx.save_for_backward(slope_UD)
        elif mode is not None:
            ctx.save_for_backward(hidden_UD, weight_VD)
            ctx.compute_VD = compute_VD
        ctx.kept_UV, ctx.reduce, ctx.scratch = kept_UV, reduce, scratch
        return value_U

    @staticmethod
    def backward(ctx: Any, grad_U: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        factor_U1 = -grad_U[:, None]
        if not ctx.needs_input_grad[1]:
            (slope_UD,) = ctx.saved_tensors
            return (slope_UD * factor_U1).to(slope_UD.dtype), None, None, None, None
        hidden_UD, weight_VD = ctx.saved_tensors
        room, kept_UV, compute_VD = ctx.scratch or Scratch(), ctx.kept_UV, ctx.compute_VD
        ctx.kept_UV = ctx.compute_VD = None
        if compute_VD is None:  # a second backward through the same graph: what the first one used up is made anew
            compute_VD = room.cast(weight_VD, hidden_UD.dtype)
        # The owner of the steps also owns the gradients: the head adds to them, instead of making a second matrix.
        in_place = ctx.scratch is not None and weight_VD.grad is not None
        grad_weight_VD: Tensor = weight_VD.grad if in_place else torch.zeros_like(weight_VD)  # pyright: ignore
        grad_hidden_UD = torch.empty_like(hidden_UD)
        for rows in [slice(0, len(hidden_UD))] if kept_UV is not None else chunks(len(hidden_UD)):
            if kept_UV is not None:
                slope_RV, hidden_RD = kept_UV, (hidden_UD * factor_U1).to(hidden_UD.dtype)
            else:
                slope_RV, hidden_RD = raw_logits(hidden_UD[rows], compute_VD, room), hidden_UD[rows]
                ctx.reduce(slope_RV, rows, differentiate=True, factor_R1=factor_U1[rows])
            torch.mm(slope_RV, compute_VD, out=grad_hidden_UD[rows])
            for slab in range(0, len(weight_VD), SLAB_WORDS):
                words = slice(slab, slab + SLAB_WORDS)
                grad_weight_VD[words] += slope_RV[:, words].T @ hidden_RD
            del slope_RV
        if kept_UV is not None:
            grad_hidden_UD.mul_(factor_U1)
        return grad_hidden_UD, None if in_place else grad_weight_VD, None, None, None


def chunks(num_rows: int, size: int = 0) -> list[slice]:
    """Rows 0 to `num_rows`, at most `size` at a time; left out, as many as one product with the head takes."""
    size = size or CHUNK_ROWS
    return [slice(start, min(num_rows, start + size)) for start in range(0, num_rows, size)]


def raw_logits(hidden_RD: Tensor, compute_VD: Tensor, room: Scratch, *, name: str = "logits") -> Tensor:
    """Logits [R, V] before any soft-cap, in the compute dtype; `name` is the buffer's."""
    logits_RV = room.take(name, len(hidden_RD), len(compute_VD), dtype=hidden_RD.dtype, device=hidden_RD.device)
    return torch.mm(hidden_RD, compute_VD.T, out=logits_RV)


def piece_rows(logits_RV: Tensor) -> int:
    """How many rows of logits to turn into fp32 at a time."""
    return max(1, PIECE_BYTES.get(logits_RV.device.type, 1 << 28) // (4 * logits_RV.shape[1]))


def _likelihood(
    target_U: Tensor,
    cap: float | None,
    logits_RV: Tensor,
    rows: slice,
    /,
    *,
    differentiate: bool,
    factor_R1: Tensor | None = None,
) -> Tensor:
    """Log-probability [R] of the targets under raw logits, in fp32, a few rows at a time.

    With `differentiate` the logits become d = -(d logp / d raw logits): `p - onehot(target)`, times the cap's slope
    `1 - (z / cap)²`, times the factor where one is given. The two parts meet in fp32, before rounding: where p is near
    1 they nearly cancel.
    """
    num_rows, num_words = logits_RV.shape
    target_R, step = target_U[rows], piece_rows(logits_RV)
    buffer_RV = logits_RV.new_empty(min(step, num_rows), num_words, dtype=torch.float32)
    logp_R1 = logits_RV.new_empty(num_rows, 1, dtype=torch.float32)
    for piece in chunks(num_rows, step):
        target_R1 = target_R[piece, None]
        z_RV = buffer_RV[: len(target_R1)].copy_(logits_RV[piece])
        slope_RV = None
        if cap is not None:
            z_RV.div_(cap).tanh_()
            slope_RV = 1 - z_RV.square() if differentiate else None
            z_RV.mul_(cap)
        picked_R1, top_R1 = z_RV.gather(1, target_R1), z_RV.amax(dim=-1, keepdim=True)
        p_RV = torch.softmax(z_RV, -1, out=z_RV)
        # log-sum-exp through the likeliest word, whose p is no less than 1 / V.
        logp_R1[piece] = picked_R1 - top_R1 + p_RV.amax(dim=-1, keepdim=True).log_()
        if differentiate:
            p_RV.scatter_add_(1, target_R1, torch.full_like(picked_R1, -1.0))
            if slope_RV is not None:
                p_RV.mul_(slope_RV)
            logits_RV[piece] = p_RV if factor_R1 is None else p_RV.mul_(factor_R1[piece])
    return logp_R1[:, 0]
