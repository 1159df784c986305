"""What every command uses to speak: one console, progress bars, notes and errors. Output goes to stdout, all else to
stderr.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# No emoji names: in "pairs.jsonl:100: ..." rich would read one.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def fail(message: str) -> None:
    """Say what is wrong."""
    err.print(f"[bold red]error 错误:[/] {escape(message)}", soft_wrap=True)


def note(message: str) -> None:
    """Say what the user should know and need not act on."""
    err.print(f"[dim]note 提示:[/] {escape(message)}", soft_wrap=True)


def show_logs() -> None:
    """Let the rooms' warnings reach the user as notes."""
    handler = RichHandler(console=err, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="note 提示: %(message)s", handlers=[handler], force=True)
    for noisy in ("httpx", "huggingface_hub", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts things; the block gets `on_progress(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def downloading() -> Iterator[Callable[[str, int, int], None]]:
    """Bars that count bytes; the block gets `on_progress(label, done, total)`, one bar a label."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        tasks = {}

        def on_progress(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = progress.add_task(label, total=total or None)
            progress.update(tasks[label], completed=done, total=total or None)

        yield on_progress


def is_terminal() -> bool:
    """True where a person can answer: both input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
