"""What can be combined with what: one table, which the check, its message and docs/planner.md are made of.

A run is looked up column by column: what is trained, the dtype of the weights, that of matrix products, the optimizer,
the device. The first setting that leaves no line of the table is the one that is refused, with what would stand there.
`CONDITIONS` are the few demands that are about single settings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from hanlin.errors import ConfigError

Method = Literal["full", "frozen layers", "LoRA", "QLoRA"]
PAGE = "docs/planner.md"
_BITSANDBYTES = ("paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit")
_ANYWHERE, _COMPUTE = ("cpu", "cuda"), ("bfloat16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What of a recipe decides whether it can work. `compute` is resolved; `device` is None while it is not known."""

    quantization: str | None
    lora: bool
    frozen_layers: int
    dtype: str
    compute: str
    optimizer: str
    compile: bool | str
    clip: float
    step_in_backward: bool
    tensor: int = 1
    shard: str = "auto"
    samples: int = 0
    device: str | None = None

    @property
    def method(self) -> Method:
        if self.lora:
            return "LoRA" if self.quantization is None else "QLoRA"
        return "frozen layers" if self.frozen_layers else "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One line of the table; a setting must be among each column's values."""

    methods: tuple[Method, ...]
    dtype: tuple[str, ...]
    compute: tuple[str, ...] = _COMPUTE
    optimizer: tuple[str, ...]
    device: tuple[str, ...]
    needs: str = ""


_WHOLE: tuple[Method, ...] = ("full", "frozen layers")
MATRIX = (
    Combination(methods=_WHOLE, dtype=("float32",), optimizer=("adamw",), device=_ANYWHERE),
    Combination(methods=_WHOLE, dtype=("float32",), optimizer=_BITSANDBYTES, device=("cuda",), needs="bitsandbytes"),
    Combination(methods=_WHOLE, dtype=("bfloat16",), optimizer=("adamw_bf16",), device=_ANYWHERE),
    Combination(
        methods=_WHOLE,
        dtype=("bfloat16",),
        optimizer=_BITSANDBYTES,
        device=("cuda",),
        needs="bitsandbytes; small steps are rounded away (a warning says which)",
    ),
    Combination(methods=("LoRA",), dtype=_COMPUTE, optimizer=("adamw",), device=_ANYWHERE),
    Combination(methods=("LoRA",), dtype=_COMPUTE, optimizer=_BITSANDBYTES, device=("cuda",), needs="bitsandbytes"),
    Combination(
        methods=("QLoRA",), dtype=_COMPUTE, optimizer=("adamw",), device=_ANYWHERE, needs="bitsandbytes (CPU too)"
    ),
    Combination(methods=("QLoRA",), dtype=_COMPUTE, optimizer=_BITSANDBYTES, device=("cuda",), needs="bitsandbytes"),
)
# Each column: the recipe's key, a setting's value, a line's values.
COLUMNS: dict[str, tuple[Callable[[Setting], str | None], Callable[[Combination], tuple[str, ...]]]] = {
    "model.dtype": (lambda one: one.dtype, lambda line: line.dtype),
    "model.compute": (lambda one: one.compute, lambda line: line.compute),
    "training.optimizer": (lambda one: one.optimizer, lambda line: line.optimizer),
    "training.device": (lambda one: one.device, lambda line: line.device),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A setting that goes with others only under a demand: what is asked, why, and whether a recipe fails it."""

    setting: str
    demand: str
    why: str
    fails: Callable[[Setting], bool]


CONDITIONS = (
    Condition(
        'model.quantization = "nf4"',
        "needs a [lora] section",
        "four bits cannot learn, adapters on top of them can",
        lambda one: one.quantization is not None and not one.lora,
    ),
    Condition(
        'model.quantization = "nf4"',
        'does not go with training.compile = true; leave it at "auto", which does not compile then',
        "nobody has tried the compiler on its kernels here",
        lambda one: one.quantization is not None and one.compile is True,
    ),
    Condition(
        "training.frozen_layers",
        "does not go with [lora]; drop one of the two",
        "adapters leave all weights frozen",
        lambda one: one.frozen_layers > 0 and one.lora,
    ),
    Condition(
        "training.step_in_backward = true",
        "needs training.clip = 0",
        "the norm of all gradients is known only when the last one is, and the first are used and gone by then",
        lambda one: one.step_in_backward and one.clip > 0,
    ),
    Condition(
        "parallel.tensor above 1",
        'does not go with parallel.shard = "full"; drop one of the two',
        "a weight is divided one way only",
        lambda one: one.tensor > 1 and one.shard == "full",
    ),
    Condition(
        "parallel.tensor above 1",
        "does not go with track.samples; leave one of the two out",
        "one rank would ask a model of which it has a part",
        lambda one: one.tensor > 1 and one.samples > 0,
    ),
    Condition(
        "parallel.tensor above 1",
        "does not go with model.quantization; leave one of the two out",
        "four bits are packed in blocks that a part's edges would cut",
        lambda one: one.tensor > 1 and one.quantization is not None,
    ),
    Condition(
        "parallel.tensor above 1",
        'needs training.optimizer = "adamw"',
        "the others round or scale by the place of a number in its tensor, which is another one in a part",
        lambda one: one.tensor > 1 and one.optimizer != "adamw",
    ),
    Condition(
        "parallel.tensor above 1",
        'does not go with training.compile = true; leave it at "auto", which does not compile then',
        "nobody has tried the compiler on its messages",
        lambda one: one.tensor > 1 and one.compile is True,
    ),
    Condition(
        "parallel.tensor above 1",
        "does not go with training.step_in_backward = true; leave one of the two out",
        "weights would be updated before gradients are summed over the processes",
        lambda one: one.tensor > 1 and one.step_in_backward,
    ),
)


def check_supported(setting: Setting) -> None:
    """Raise ConfigError for a combination that cannot work: the setting, what to set instead, and the table's lines.

    Without a device, only what holds on every device is checked.
    """
    for condition in CONDITIONS:
        if condition.fails(setting):
            raise ConfigError(f"{condition.setting} {condition.demand}: {condition.why} ({PAGE})")
    lines = [line for line in MATRIX if setting.method in line.methods]
    settled = [f"{setting.method} training"]
    for key, (chosen, possible) in COLUMNS.items():
        value = chosen(setting)
        left = [line for line in lines if value is None or value in possible(line)]
        if not left:
            instead = dict.fromkeys(f'"{choice}"' for line in lines for choice in possible(line))
            raise ConfigError(
                f'{key} = "{value}" does not go with {", ".join(settled)}: use {" or ".join(instead)}. What goes '
                f"together ({PAGE}):\n" + "\n".join(_rows(setting.method))
            )
        lines = left
        settled.append(f"{key} = {value}")


def _rows(method: Method) -> Iterator[str]:
    for line in MATRIX:
        if method in line.methods:
            yield "  " + " | ".join((method, *cells(line)))


def cells(line: Combination) -> tuple[str, ...]:
    """A line of the table as text, what is trained left out."""
    shown = (line.dtype, line.compute, line.optimizer, line.device)
    return (*(", ".join(values) for values in shown), line.needs or "–")


HEADER = ("what is trained", *COLUMNS, "needs")
