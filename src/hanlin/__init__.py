"""Hanlin turns an open chat model into a bilingual Chinese-English one, proves that it got better, and runs it.

`load`, `train` and `stream` are the public functions; they are imported on first use so that `import hanlin` stays
instant.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanlin.api import load, stream, train

__version__ = "0.1.0"
__all__ = ["load", "stream", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hanlin import api

        return getattr(api, name)
    raise AttributeError(f"module 'hanlin' has no attribute {name!r}")
