"""Optimizers, under the names that users of other trainers type. All of them are AdamW (arXiv 1711.05101).

    name                state, bytes a parameter      weights                  where
    adamw               8                             float32                  anywhere: torch's own, fused
    adamw_bf16          4                             bfloat16                 anywhere: ours
    paged_adamw_32bit   8, moved to the CPU's memory  float32                  CUDA: bitsandbytes
                        where the GPU's is full
    adamw_8bit          2                             float32                  CUDA: bitsandbytes
    paged_adamw_8bit    2, moved likewise             float32                  CUDA: bitsandbytes

Surprising: bfloat16 has eight significant bits. At the learning rates of preference tuning an update is far smaller
than half the distance between two neighbouring values, so a weight that is rounded to the nearest one never moves at
all. `adamw_bf16` rounds at random, up or down, so that the mean is exact; "adamw" is refused for bfloat16 weights, and
bitsandbytes, which rounds to the nearest, is used with a warning. What is trained is what requires gradients: under
[lora] that is adapters in float32, whatever the frozen weights are.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from hanlin.errors import ConfigError
from hanlin.training.parallel import is_sharded, local, local_place
from hanlin.training.recipe import TrainingConfig, stands_still

STATE_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "paged_adamw_32bit": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03}
"""State of one trained parameter; 8-bit states bring two fp32 scales for every 256 values."""

UPDATE_BYTES = {"adamw": 50, "adamw_bf16": 150, "paged_adamw_32bit": 50, "adamw_8bit": 26, "paged_adamw_8bit": 26}
"""What an update of one parameter reads and writes: weight, gradient and states, the norm and the clipping of its
gradient, the cast for the next step. Ours for bfloat16 works on fp32 copies and draws random bits: measured.
"""

SHARDABLE = ("adamw", "adamw_bf16")  # whose states can be divided over ranks; bitsandbytes knows whole tensors only

_FROM_BITSANDBYTES = ("paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit")
# Numbers that are updated at a time: on the CPU they stay in the cache, on a GPU they hide the launches.
_CHUNK = {"cpu": 2**18, "cuda": 2**22}
_log = logging.getLogger(__name__)

Group = dict[str, Any]
"""Parameters that share their weight decay, as torch's optimizers take them: "params", "weight_decay"."""


@runtime_checkable
class LaysOutStates(Protocol):
    """An optimizer whose states must lie in memory of its own making: bitsandbytes' pages."""

    def init_state(self, group: Group, p: Tensor, gindex: int, pindex: int) -> None: ...


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that the [training] section names, for the parameters of `model` that require gradients.

    Matrices decay, vectors (norms and biases) do not. Raises ConfigError as `check_optimizer`, and where name and
    dtype of the trained weights do not go together.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    check_optimizer(config.optimizer, trained[0].device, narrow=_narrow(trained))
    _check_dtypes(config, trained)
    groups: list[Group] = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer in _FROM_BITSANDBYTES:
        return _from_bitsandbytes(groups, config)
    rate, betas, epsilon = config.learning_rate, config.betas, config.epsilon
    if config.optimizer == "adamw_bf16":
        return StochasticAdamW(groups, lr=rate, betas=betas, eps=epsilon, seed=config.seed)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)


def check_optimizer(name: str, device: torch.device, *, narrow: bool = False) -> None:
    """Raise ConfigError where the optimizer cannot run: what comes from bitsandbytes needs the package and CUDA. The
    way on is another one where the weights that learn are `narrow`, bfloat16.
    """
    if name not in _FROM_BITSANDBYTES:
        return
    other = "adamw_bf16" if narrow else "adamw"
    same = "computes the same update" if name == "paged_adamw_32bit" else "is its exact form"
    what = f'"{other}" {"rounds at random, right on average," if narrow else same}'
    instead = f"{what} and keeps {STATE_BYTES[other]:g} bytes a parameter on the device: training.optimizer={other}"
    if device.type != "cuda":
        raise ConfigError(
            f'training.optimizer = "{name}" comes from bitsandbytes and needs a CUDA device; this run is on {device}. '
            f"{instead}"
        )
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f'training.optimizer = "{name}" comes from bitsandbytes, which cannot be imported ({error}): '
            f'pip install "hanlin[cuda]". {instead}'
        ) from None


def _narrow(trained: Sequence[nn.Parameter]) -> bool:
    return any(parameter.dtype == torch.bfloat16 for parameter in trained)


def _check_dtypes(config: TrainingConfig, trained: Sequence[nn.Parameter]) -> None:
    """Where a name promises what the weights' dtype cannot keep."""
    narrow = _narrow(trained)
    if config.optimizer == "adamw_bf16" and not narrow:
        raise ConfigError(
            'training.optimizer = "adamw_bf16" is for bfloat16 weights, and those that are trained are '
            f'{str(trained[0].dtype).removeprefix("torch.")}: set model.dtype = "bfloat16", or training.optimizer = '
            '"adamw" (always with [lora])'
        )
    if config.optimizer == "adamw" and narrow:
        raise ConfigError(stands_still(config))
    if config.optimizer in _FROM_BITSANDBYTES and narrow:
        _log.warning("%s", stands_still(config))


def _from_bitsandbytes(groups: list[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """The class of this name; tensors of fewer than 4,096 numbers keep 32-bit states, which is its default."""
    from bitsandbytes import optim  # pyright: ignore[reportMissingImports]

    names = {
        "paged_adamw_32bit": "PagedAdamW32bit",
        "adamw_8bit": "AdamW8bit",
        "paged_adamw_8bit": "PagedAdamW8bit",
    }
    made: torch.optim.Optimizer = getattr(optim, names[config.optimizer])(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon
    )
    return made


def lay_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the states that a restored run is read into, for optimizers that must make them themselves."""
    if isinstance(optimizer, LaysOutStates):
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, number, place)


def begin_states(optimizer: torch.optim.Optimizer) -> None:
    """Make torch's AdamW have now the states that it would make in the first step."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not (state := optimizer.state[parameter]):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter.data)
                state["exp_avg_sq"] = torch.zeros_like(parameter.data)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights: computed in fp32, a chunk at a time; stored with stochastic rounding.

    BF16-AdamW-SR, arXiv 2502.20566. Weights and both moments are stored in the weight's dtype and rounded alike. The
    second moment needs it as much as the weights do: with beta 0.999 it changes by a thousandth a step, and
    round-to-nearest loses what is below four, so it could never fall. fp32 moments would cost 4 bytes a parameter more
    and remove an error of a few percent in the length of a step. The random bits come from `seed`, the step's number
    and the parameter's place, so a resumed run draws those of the uninterrupted one. Parameters in fp32 get the plain
    update.
    """

    def __init__(
        self, groups: Iterable[Group], *, lr: float, betas: tuple[float, float], eps: float, seed: int
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient. `closure` is part of torch's signature and must be None."""
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, place)
                place += 1

    def _update(self, parameter: nn.Parameter, group: Group, place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["step"] += 1
        assert parameter.grad is not None
        # Of a sharded matrix each rank draws other bits for its rows.
        first = local_place(parameter.data)[1] if is_sharded(parameter.data) else 0
        entropy = (self._seed, state["step"], place, *([first] if first else []))
        generator = self._generator(parameter.device, entropy)
        stored = [local(one).view(-1) for one in (parameter.data, state["exp_avg"], state["exp_avg_sq"])]
        grad_X = local(parameter.grad).reshape(-1)
        chunk = _CHUNK.get(parameter.device.type, _CHUNK["cuda"])
        for start in range(0, len(grad_X), chunk):
            piece = slice(start, start + chunk)
            _advance([one[piece] for one in stored], grad_X[piece], group, state["step"], generator)

    def _generator(self, device: torch.device, entropy: tuple[int, ...]) -> torch.Generator:
        """Of this parameter in this step, whatever was drawn before."""
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return generator.manual_seed(int(seed))


def _advance(stored: Sequence[Tensor], grad_X: Tensor, group: Group, step: int, generator: torch.Generator) -> None:
    """One update of X numbers of (weight, first moment, second moment), in place (arXiv 1711.05101, algorithm 2)."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    grad_X = grad_X.float()
    weight, first, second = wide = [one.float() for one in stored]  # of fp32 this is the stored tensor itself
    first.lerp_(grad_X, 1 - beta1)
    second.mul_(beta2).addcmul_(grad_X, grad_X, value=1 - beta2)
    scale_X = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    weight.mul_(1 - rate * group["weight_decay"]).addcdiv_(first, scale_X, value=-rate / (1 - beta1**step))
    if stored[0].dtype == torch.bfloat16:
        # 63 random bits for each number, of which each rounding takes 16.
        bits_X = torch.empty(len(grad_X), dtype=torch.int64, device=grad_X.device).random_(generator=generator)
        columns = bits_X.view(torch.int16).view(-1, 4).unbind(1)[:3]
        for out, value, random_X in zip(stored, wide, columns, strict=True):
            store_rounded(out, value, random_X)


def store_rounded(out: Tensor, value: Tensor, random: Tensor) -> None:
    """Store fp32 `value`, which is overwritten, as bfloat16 in `out`: up with the probability of the remainder.

    `random` (int16, of a shape that broadcasts) is uniform over all values of its type. bfloat16 is the upper half of
    fp32's bits: a random number of 16 bits is added to the lower half, and what did not carry over is cut off.
    """
    value.view(torch.int32).add_(random).add_(2**15).bitwise_and_(-(2**16))
    out.copy_(value)
