"""Reads lines from a person, or from a pipe.

Surprises: with readline a paste of several lines comes as one line that holds newlines (bracketed paste), and backspace
takes a whole wide character; both are readline's work, so it is loaded where there is a terminal. While an answer is
printed the keyboard is not echoed, so that neither "^C" nor what is typed ahead lands in the middle of it.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

from hanlin.errors import DataError

Reader = Callable[[str], str]
"""Called with a prompt, gives the next line without its newline; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


def open_reader(err: Console) -> Reader:
    """Lines of standard input, edited with readline where it is a terminal."""
    if not sys.stdin.isatty():
        return _read_pipe
    if not sys.stdout.isatty():  # `input` would write its prompt into the answers
        return lambda prompt: _read_beside(prompt, err)
    with contextlib.suppress(ImportError):  # Windows has a line editor of its own
        readline = importlib.import_module("readline")
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_auto_history(True)
    before, after = ("\001\033[1;36m\002", "\001\033[0m\002") if err.color_system and not err.no_color else ("", "")
    return lambda prompt: input(f"{before}{prompt}{after}")


def read_all() -> str:
    """All of standard input. Raises DataError when it is not UTF-8."""
    return _decoded(sys.stdin.buffer.read())


def _read_pipe(prompt: str) -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return _decoded(line).rstrip("\r\n")


def _read_beside(prompt: str, err: Console) -> str:
    err.print(prompt, end="", style="bold cyan", highlight=False, markup=False)
    return input()


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 at byte {error.start}; convert it: iconv -f GB18030 -t UTF-8"
        ) from None


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Nothing typed is echoed inside; it is there for the next prompt. Ctrl-C works."""
    if not sys.stdin.isatty() or importlib.util.find_spec("termios") is None:
        yield
        return
    termios, descriptor = importlib.import_module("termios"), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
