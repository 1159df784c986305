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
"""

from typing import Any, Literal

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
    weight_VD = model.head_weight
    # Inside an autograd function gradients always look disabled, so whether there will be a backward pass is said here.
    mode = model.head_mode if weight_VD.requires_grad else "frozen"
    logp_U: Tensor = _HeadLogprobs.apply(  # pyright: ignore[reportAssignmentType]
        hidden_TD.index_select(0, predictor_N),
        weight_VD,
        target_N,
        model.config.logit_cap,
        model.scratch,
        mode if torch.is_grad_enabled() else None,
    )
    return logp_U if row_N is None else logp_U.index_select(0, row_N)


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


class _HeadLogprobs(torch.autograd.Function):
    """Fused head, log-softmax and gather of U predictions; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        target_U: Tensor,
        cap: float | None,
        scratch: Scratch | None,
        mode: Mode | None,
    ) -> Tensor:
        room = scratch or Scratch()
        compute_VD = room.cast(weight_VD, hidden_UD.dtype)
        logp_U = hidden_UD.new_empty(len(hidden_UD), dtype=torch.float32)
        slope_UD = torch.empty_like(hidden_UD) if mode == "frozen" else None
        kept_UV = None
        for rows in _chunks(len(hidden_UD), whole=mode == "fast"):
            logits_RV = _logits(hidden_UD[rows], compute_VD, room)
            logp_U[rows] = _reduce(logits_RV, target_U[rows], cap, differentiate=mode in ("frozen", "fast"))
            if slope_UD is not None:
                torch.mm(logits_RV, compute_VD, out=slope_UD[rows])
            kept_UV = logits_RV if mode == "fast" else None
            del logits_RV  # the next chunk takes the same buffer
        if mode == "frozen":
            ctx.save_for_backward(slope_UD)
        elif mode is not None:
            ctx.save_for_backward(hidden_UD, weight_VD, target_U)
            ctx.compute_VD = compute_VD
        ctx.kept_UV, ctx.cap, ctx.scratch = kept_UV, cap, scratch
        return logp_U

    @staticmethod
    def backward(ctx: Any, grad_U: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        factor_U1 = -grad_U[:, None]
        if not ctx.needs_input_grad[1]:
            (slope_UD,) = ctx.saved_tensors
            return (slope_UD * factor_U1).to(slope_UD.dtype), None, None, None, None, None
        hidden_UD, weight_VD, target_U = ctx.saved_tensors
        room, kept_UV, compute_VD = ctx.scratch or Scratch(), ctx.kept_UV, ctx.compute_VD
        ctx.kept_UV = ctx.compute_VD = None
        if compute_VD is None:  # a second backward through the same graph: what the first one used up is made anew
            compute_VD = room.cast(weight_VD, hidden_UD.dtype)
        # The owner of the steps also owns the gradients: the head adds to them, instead of making a second matrix.
        in_place = ctx.scratch is not None and weight_VD.grad is not None
        grad_weight_VD: Tensor = weight_VD.grad if in_place else torch.zeros_like(weight_VD)  # pyright: ignore
        grad_hidden_UD = torch.empty_like(hidden_UD)
        for rows in _chunks(len(hidden_UD), whole=kept_UV is not None):
            if kept_UV is not None:
                slope_RV, hidden_RD = kept_UV, (hidden_UD * factor_U1).to(hidden_UD.dtype)
            else:
                slope_RV, hidden_RD = _logits(hidden_UD[rows], compute_VD, room), hidden_UD[rows]
                _reduce(slope_RV, target_U[rows], ctx.cap, differentiate=True, factor_R1=factor_U1[rows])
            torch.mm(slope_RV, compute_VD, out=grad_hidden_UD[rows])
            for slab in range(0, len(weight_VD), SLAB_WORDS):
                words = slice(slab, slab + SLAB_WORDS)
                grad_weight_VD[words] += slope_RV[:, words].T @ hidden_RD
            del slope_RV
        if kept_UV is not None:
            grad_hidden_UD.mul_(factor_U1)
        return grad_hidden_UD, None if in_place else grad_weight_VD, None, None, None, None


def _chunks(num_rows: int, *, whole: bool) -> list[slice]:
    if whole:
        return [slice(0, num_rows)]
    return [slice(start, min(num_rows, start + CHUNK_ROWS)) for start in range(0, num_rows, CHUNK_ROWS)]


def _logits(hidden_RD: Tensor, compute_VD: Tensor, room: Scratch) -> Tensor:
    logits_RV = room.take("logits", len(hidden_RD), len(compute_VD), dtype=hidden_RD.dtype, device=hidden_RD.device)
    return torch.mm(hidden_RD, compute_VD.T, out=logits_RV)


def _reduce(
    logits_RV: Tensor, target_R: Tensor, cap: float | None, *, differentiate: bool, factor_R1: Tensor | None = None
) -> Tensor:
    """Log-probability [R] of the targets under raw logits, in fp32, a few rows at a time.

    With `differentiate` the logits become d = -(d logp / d raw logits): `p - onehot(target)`, times the cap's slope
    `1 - (z / cap)²`, times the factor where one is given. The two parts meet in fp32, before rounding: where p is near
    1 they nearly cancel.
    """
    num_rows, num_words = logits_RV.shape
    step = max(1, PIECE_BYTES.get(logits_RV.device.type, 1 << 28) // (4 * num_words))
    buffer_RV = logits_RV.new_empty(min(step, num_rows), num_words, dtype=torch.float32)
    logp_R1 = logits_RV.new_empty(num_rows, 1, dtype=torch.float32)
    for start in range(0, num_rows, step):
        rows = slice(start, min(num_rows, start + step))
        target_R1 = target_R[rows, None]
        z_RV = buffer_RV[: len(target_R1)].copy_(logits_RV[rows])
        slope_RV = None
        if cap is not None:
            z_RV.div_(cap).tanh_()
            slope_RV = 1 - z_RV.square() if differentiate else None
            z_RV.mul_(cap)
        picked_R1, top_R1 = z_RV.gather(1, target_R1), z_RV.amax(dim=-1, keepdim=True)
        p_RV = torch.softmax(z_RV, -1, out=z_RV)
        # log-sum-exp through the likeliest word, whose p is no less than 1 / V.
        logp_R1[rows] = picked_R1 - top_R1 + p_RV.amax(dim=-1, keepdim=True).log_()
        if differentiate:
            p_RV.scatter_add_(1, target_R1, torch.full_like(picked_R1, -1.0))
            if slope_RV is not None:
                p_RV.mul_(slope_RV)
            logits_RV[rows] = p_RV if factor_R1 is None else p_RV.mul_(factor_R1[rows])
    return logp_R1[:, 0]
