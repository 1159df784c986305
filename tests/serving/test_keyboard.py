"""Lines from a real terminal (a pty, so that readline does the editing) and from pipes."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest
from rich.console import Console

from hanlin.errors import DataError
from hanlin.serving.keyboard import open_reader, quiet_keyboard

SCRIPT = """
from rich.console import Console
from hanlin.serving.keyboard import open_reader
read = open_reader(Console(stderr=True))
while True:
    print("<" + ascii(read("你 You > ")) + ">", flush=True)
"""


class Terminal:
    """The script above on a pseudo-terminal."""

    def __init__(self) -> None:
        self.us, them = pty.openpty()
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdin=them, stdout=them, stderr=subprocess.DEVNULL, env=environment
        )
        os.close(them)
        self.seen = ""

    def wait_for(self, text: str) -> str:
        until = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            self.seen += os.read(self.us, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, keys: str) -> str:
        """What the reader made of the keys."""
        os.write(self.us, keys.encode())
        self.wait_for("<")
        return self.wait_for(">")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.us)


def test_line_editing_knows_wide_characters_and_pastes():
    terminal = Terminal()
    try:
        terminal.wait_for("You > ")
        assert terminal.type("你好世界\x7f\x7f吗\r") == ascii("你好吗")
        terminal.wait_for("You > ")
        assert terminal.type("\x1b[200~一\n二\x1b[201~\r") == ascii("一\n二")
    finally:
        terminal.close()


def piped(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return open_reader(Console(file=io.StringIO()))


def test_lines_of_a_pipe(monkeypatch):
    read = piped(monkeypatch, "\ufeff你好\r\n\nlast".encode())
    assert [read("> "), read("> "), read("> ")] == ["你好", "", "last"]
    with pytest.raises(EOFError):
        read("> ")
    with quiet_keyboard():  # nothing to quieten
        pass


def test_a_pipe_that_is_not_utf8(monkeypatch):
    with pytest.raises(DataError, match="not UTF-8 at byte 0; convert it"):
        piped(monkeypatch, "你好".encode("gb18030"))("> ")
