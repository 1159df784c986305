"""The `hanlin` command inside this process: what it prints and how it exits, without two seconds of start-up each."""

import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from hanlin.cli.app import main


class Answer(NamedTuple):
    """What a command said and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `hanlin ARGUMENTS`; an exception that would be a traceback fails the test."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hanlin", *map(str, arguments)])
        handlers = logging.getLogger().handlers[:]
        status = 0
        try:
            main()
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        finally:
            logging.getLogger().handlers[:] = handlers
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return run
