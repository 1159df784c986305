"""Files that come with Hanlin: recipes and data, found in the checkout or in the installed package."""

from pathlib import Path

from hanlin.errors import ConfigError

_PACKAGE = Path(__file__).parent.parent


def shipped(name: str) -> Path:
    """The path of a shipped file such as "recipes/demo.toml"."""
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent.parent):
        if (root / name).is_file():
            return root / name
    raise ConfigError(
        f"{name} did not come with this installation of Hanlin; install it again, or name a file of your own"
    )
