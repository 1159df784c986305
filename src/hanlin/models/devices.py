"""Devices and dtypes by the names that people write."""

import torch

from hanlin.errors import CheckpointError, ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: torch.device | str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. Raises ConfigError for one that cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'device "{name}" cannot be used ({reason}); use "auto" or "cpu"') from None
    return device


def parse_dtype(name: torch.dtype | str) -> torch.dtype:
    """The torch dtype of a name in `DTYPES`."""
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values():
        raise CheckpointError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    assert dtype is not None
    return dtype
