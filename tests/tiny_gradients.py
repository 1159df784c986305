"""Gradients of tiny models and what it means that two are the same, for the laws of every objective."""

from torch import Tensor

from hanlin.models.transformer import Transformer


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of `loss` by parameter."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Each within 1e-5 of the expected one's length."""
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (mine[name] - expected).norm() <= 1e-5 * expected.norm().clamp(min=1e-6), name
