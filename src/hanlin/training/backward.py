"""Step in backward: each weight is updated in the moment its gradient is complete, and the gradient is freed.

The gradients of a step then take the memory of one tensor instead of the model's (Lv et al., "Full Parameter
Fine-tuning for Large Language Models with Limited Resources", arXiv 2306.09782, section 3). The numbers are those of
the ordinary step, bit for bit: an update needs its own gradient alone. So it needs steps without clipping, whose norm
is over all gradients; and steps of one pass: a gradient that is added up over several is not complete before the last.
A step of several passes is therefore computed in the ordinary way, with the ordinary memory.

What is lost: a loss that is not finite is found before anything is updated, but a gradient only after others have been
applied. The run ends there too.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hanlin.training.checkpoint import Progress
from hanlin.training.schedule import set_learning_rate
from hanlin.training.work import Job, Work, not_finite


def update_in_backward(job: Job, progress: Progress, work: Work) -> dict[str, float]:
    """One optimizer update of a step of one pass; what is logged of it.

    Raises TrainingError where loss or gradient is not finite.
    """
    model, [batch] = job.model, work.batches
    rate = set_learning_rate(job.optimizer, job.config, progress.step, num_steps=job.num_steps)
    loss = job.objective.loss(model, batch, work.counts)
    value = loss.total.item()
    if not math.isfinite(value):
        raise not_finite("loss", progress.step + 1, batch.ids_P, noun="examples")
    with _updating(model, job.optimizer) as norms:
        loss.total.backward()
    if model.scratch is not None:
        model.scratch.renew()
    norm, *terms = torch.stack([torch.linalg.vector_norm(torch.stack(norms)), *loss.terms.values()]).tolist()
    if not math.isfinite(norm):
        state = "weights in memory are spoilt"
        raise not_finite("gradient norm", progress.step + 1, batch.ids_P, noun="examples", state=state)
    return {"loss": value, **dict(zip(loss.terms, terms, strict=True)), "grad_norm": norm, "learning_rate": rate}


@contextmanager
def _updating(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """While it lasts, a backward pass updates what learns and leaves no gradients. Gives the norms of these gradients
    in the order of the parameters.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    place = {id(parameter): number for number, parameter in enumerate(learning)}
    norms: list[Tensor] = [torch.zeros((), device=parameter.device) for parameter in learning]

    def update(parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms[place[id(parameter)]] = torch.linalg.vector_norm(parameter.grad)
        optimizer.step()  # no other parameter has a gradient now: only this one is updated
        parameter.grad = None

    for parameter in learning:
        parameter.grad = None
    handles = [parameter.register_post_accumulate_grad_hook(update) for parameter in learning]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()
