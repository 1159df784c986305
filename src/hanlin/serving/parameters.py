"""Sampling as a person sees and types it: "temperature=0.3 top_p=1"."""

import difflib

from hanlin.errors import ConfigError
from hanlin.generation.sampling import Sampling


def as_dict(sampling: Sampling) -> dict[str, float | int | None]:
    """Names and values, in the order in which they are shown."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
    }


def changed(sampling: Sampling, assignments: str) -> Sampling:
    """The sampling after "temperature=0.3 top_p=1"; "seed=none" draws a new seed each time.

    Raises ConfigError for an unknown name, a wrong type or a value out of range.
    """
    defaults = as_dict(Sampling())
    values: dict[str, float | int | None] = {}
    for assignment in assignments.replace(" =", "=").replace("= ", "=").replace(",", " ").split():
        name, equals, value = assignment.partition("=")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1, cutoff=0.3) or ["temperature"]
            raise ConfigError(
                f"没有这个参数 parameter {name!r} is unknown; did you mean {near[0]}? known: {', '.join(defaults)}"
            )
        whole = not isinstance(defaults[name], float)
        if name == "seed" and value.lower() in ("none", "off", "random"):
            values[name] = None
            continue
        try:
            values[name] = int(value) if whole else float(value)
        except ValueError:
            kind = "整数 a whole number" if whole else "数字 a number"
            found = repr(value) if equals else "nothing"
            raise ConfigError(f"{name} is {found}; expected {kind}, as in {name}={defaults[name]}") from None
    return Sampling(**{**as_dict(sampling), **values})  # pyright: ignore[reportArgumentType] (each value has its default's kind)
