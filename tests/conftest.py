"""Fixtures every room's tests share: where downloaded assets and the shared real data are, or a skip."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    """Directory of downloaded tokenizers and weights (`make assets`); tests that need it are marked `assets`."""
    path = Path(os.environ.get("HANLIN_ASSETS", REPOSITORY / ".assets"))
    if not path.is_dir():
        pytest.skip(f"{path} is missing: run `make assets`")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the real preference pairs that developers have beside the checkout."""
    path = Path(os.environ.get("HANLIN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"{path} is missing: the shared real data is only on developers' machines")
    return path
