"""Log-probabilities of the scored tokens, computed through the model's head a chunk at a time.

Logits of one chunk exist in fp32, never T x V of them. Only stream positions that predict something reach the head,
each once, even where one position predicts two tokens. The backward pass needs the probabilities again: in bf16 the
head's raw logits are kept (2 bytes each, half the price of computing them anew) while they fit `KEEP_BYTES`; otherwise
each chunk is recomputed. Both give the same numbers.
"""

from typing import Any

import torch
from torch import Tensor

from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer, soft_cap
from hanlin.types import Batch

KEEP_BYTES = 1 << 30  # kept bf16 logits of one stream: a 2 x 512-token pair of a 262 144-word vocabulary fits
SLAB_WORDS = 1 << 15  # vocabulary rows of the head's gradient that exist in the compute dtype at a time
MATMUL_ROWS = 1024  # rows of one head matmul when logits are recomputed
POINTWISE_BYTES = 1 << 21  # fp32 logits at a time in the softmax: stays in the cache


def token_logprobs(model: Transformer, hidden_TD: Tensor, predictor_N: Tensor, target_N: Tensor) -> Tensor:
    """log p(target | stream up to predictor) in fp32 [N] for hidden states [T, D] of the model's stream.

    Soft-cap included; differentiable in the hidden states and the head's weight. Equal to
    `model.head(hidden)[predictor].log_softmax(-1)[target]`, which the tests check with logits well beyond the cap.
    """
    row_U, row_of_N = torch.unique(predictor_N, return_inverse=True)
    # Inside an autograd function gradients always look disabled, so whether there will be a backward pass is said here.
    keep = hidden_TD.dtype == torch.bfloat16 and torch.is_grad_enabled()
    logp_N: Tensor = _HeadLogprobs.apply(  # pyright: ignore[reportAssignmentType]
        hidden_TD.index_select(0, row_U),
        model.head_weight,
        row_of_N,
        target_N,
        model.config.logit_cap,
        model.scratch,
        keep and len(row_U) * model.config.vocab_size * 2 <= KEEP_BYTES,
    )
    return logp_N


def span_sums(logp_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of log-probabilities and number of tokens of each scored span, both fp32 [num_spans]."""
    zeros = torch.zeros(batch.num_spans, dtype=torch.float32, device=logp_N.device)
    return zeros.index_add(0, batch.span_N, logp_N), zeros.index_add(0, batch.span_N, torch.ones_like(logp_N))


class _HeadLogprobs(torch.autograd.Function):
    """Fused head, log-softmax and gather; see `token_logprobs`. U distinct predicting rows, N >= U targets."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        row_N: Tensor,
        target_N: Tensor,
        cap: float | None,
        scratch: Scratch | None,
        keep: bool,
    ) -> Tensor:
        room = scratch or Scratch()
        compute_VD = _in_dtype(weight_VD, hidden_UD.dtype, room)
        rows = len(hidden_UD)
        lse_U = hidden_UD.new_empty(rows, dtype=torch.float32)
        picked_N = hidden_UD.new_empty(len(row_N), dtype=torch.float32)
        kept_UV = None
        for start in range(0, rows, rows if keep else MATMUL_ROWS):
            stop = rows if keep else min(rows, start + MATMUL_ROWS)
            logits_RV = _logits(hidden_UD[start:stop], compute_VD, room)
            kept_UV = logits_RV if keep else None
            _reduce(logits_RV, cap, lse_U[start:stop])
            here = (row_N >= start) & (row_N < stop)
            picked = logits_RV[row_N[here] - start, target_N[here]].float()
            picked_N[here] = soft_cap(picked, cap)
            del logits_RV  # the next chunk takes the same buffer
        ctx.save_for_backward(hidden_UD, weight_VD, row_N, target_N, lse_U)
        ctx.cap, ctx.kept_UV, ctx.compute_VD, ctx.scratch = cap, kept_UV, compute_VD, scratch
        return picked_N - lse_U[row_N]

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden_UD, weight_VD, row_N, target_N, lse_U = ctx.saved_tensors
        compute_VD, kept_UV, room = ctx.compute_VD, ctx.kept_UV, ctx.scratch or Scratch()
        if compute_VD is None:  # a second backward through the same graph: what the first one used up is made anew
            compute_VD = _in_dtype(weight_VD, hidden_UD.dtype, room)
        ctx.compute_VD = ctx.kept_UV = None
        rows = len(hidden_UD)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_UD = torch.empty_like(hidden_UD) if needs_hidden else None
        # The owner of the steps also owns the gradients: the head adds to them, instead of making a second matrix.
        in_place = ctx.scratch is not None and weight_VD.grad is not None
        grad_weight_VD: Tensor | None = weight_VD.grad if in_place else None
        total_U = torch.zeros_like(lse_U).index_add_(0, row_N, grad_N)
        for start in range(0, rows, rows if kept_UV is not None else MATMUL_ROWS):
            stop = rows if kept_UV is not None else min(rows, start + MATMUL_ROWS)
            logits_RV = kept_UV
            if logits_RV is None:
                logits_RV = _logits(hidden_UD[start:stop], compute_VD, room)
            here = (row_N >= start) & (row_N < stop)
            local_M, target_M, grad_M = row_N[here] - start, target_N[here], grad_N[here]
            _to_gradient(logits_RV, ctx.cap, lse_U[start:stop], total_U[start:stop], (local_M, target_M, grad_M))
            if grad_hidden_UD is not None:
                grad_hidden_UD[start:stop] = logits_RV @ compute_VD
            if needs_weight:
                if grad_weight_VD is None:
                    grad_weight_VD = torch.zeros_like(weight_VD)
                for slab in range(0, len(weight_VD), SLAB_WORDS):
                    part_VD = logits_RV[:, slab : slab + SLAB_WORDS].T @ hidden_UD[start:stop]
                    grad_weight_VD[slab : slab + SLAB_WORDS] += part_VD
            del logits_RV
        return grad_hidden_UD, None if in_place else grad_weight_VD, None, None, None, None, None


def _in_dtype(weight_VD: Tensor, dtype: torch.dtype, room: Scratch) -> Tensor:
    if weight_VD.dtype == dtype:
        return weight_VD.detach()
    copy_VD = room.take("head weight", *weight_VD.shape, dtype=dtype, device=weight_VD.device)
    return copy_VD.copy_(weight_VD)


def _logits(hidden_RD: Tensor, compute_VD: Tensor, room: Scratch) -> Tensor:
    logits_RV = room.take("logits", len(hidden_RD), len(compute_VD), dtype=hidden_RD.dtype, device=hidden_RD.device)
    return torch.mm(hidden_RD, compute_VD.T, out=logits_RV)


def _pieces(logits_RV: Tensor) -> tuple[range, Tensor]:
    """Row ranges small enough for the cache, and one fp32 buffer [rows, V] that all of them use in turn."""
    rows = max(1, POINTWISE_BYTES // (4 * logits_RV.shape[1]))
    buffer_RV = logits_RV.new_empty(min(rows, len(logits_RV)), logits_RV.shape[1], dtype=torch.float32)
    return range(0, len(logits_RV), rows), buffer_RV


def _reduce(logits_RV: Tensor, cap: float | None, lse_R: Tensor) -> None:
    """Write each row's log-sum-exp of the (capped) logits, in fp32."""
    pieces, buffer_RV = _pieces(logits_RV)
    for start in pieces:
        raw_RV = logits_RV[start : start + pieces.step]
        z_RV = buffer_RV[: len(raw_RV)].copy_(raw_RV)
        if cap is not None:
            z_RV.div_(cap).tanh_().mul_(cap)
        top_R1 = z_RV.amax(dim=-1, keepdim=True)
        lse_R[start : start + pieces.step] = z_RV.sub_(top_R1).exp_().sum(dim=-1).log_() + top_R1[:, 0]


def _to_gradient(
    logits_RV: Tensor, cap: float | None, lse_R: Tensor, total_R: Tensor, targets: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Turn raw logits into d loss / d raw logits, in place: `sum_n g_n (onehot(target_n) - p)`, times the cap's slope
    `1 - (z / cap)²`.

    The two parts meet in fp32, before rounding: where p is near 1 they nearly cancel.
    """
    row_M, target_M, grad_M = targets
    pieces, buffer_RV = _pieces(logits_RV)
    for start in pieces:
        stop = start + pieces.step
        raw_RV = logits_RV[start:stop]
        grad_RV = buffer_RV[: len(raw_RV)].copy_(raw_RV)
        slope_RV = None
        if cap is not None:
            grad_RV.div_(cap).tanh_()
            slope_RV = 1 - grad_RV.square()
            grad_RV.mul_(cap)
        grad_RV.sub_(lse_R[start:stop, None]).exp_().mul_(-total_R[start:stop, None])
        here = (row_M >= start) & (row_M < stop)
        grad_RV.index_put_((row_M[here] - start, target_M[here]), grad_M[here], accumulate=True)
        if slope_RV is not None:
            grad_RV.mul_(slope_RV)
        raw_RV.copy_(grad_RV)
