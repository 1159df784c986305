"""The `hanlin` command: its sub-commands, and what happens when one of them fails.

Commands import what they need when they run, so that `hanlin --help` answers at once. What a user can mend ends in one
line and exit status 2; a traceback is a defect of ours.
"""

import sys

import typer

from hanlin import __version__
from hanlin.cli.chat import chat
from hanlin.cli.console import fail
from hanlin.cli.curate import curate
from hanlin.cli.data import data
from hanlin.cli.demo import demo
from hanlin.cli.evaluate import compare, evaluate
from hanlin.cli.inspect import inspect
from hanlin.cli.runs import runs
from hanlin.cli.train import train
from hanlin.errors import HanlinError

app = typer.Typer(
    name="hanlin",
    help="翰林 · Turn an open chat model into a bilingual Chinese-English one, prove that it got better, and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, inspect, train, runs, chat, evaluate, compare, curate):
    app.command()(command)
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hanlin {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """翰林 · Turn an open chat model into a bilingual Chinese-English one, prove that it got better, and run it."""


def main() -> None:
    """Entry point: run the command; a user's mistake is one line on stderr and exit status 2, Ctrl-C is 130."""
    try:
        app()
    except HanlinError as error:
        fail(str(error))
        sys.exit(2)
    except SystemExit as ended:
        # Typer makes this of Ctrl-C, by way of `Exit(130)`; a command that ends with 130 itself has spoken.
        if ended.__context__ is not None and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            fail("interrupted 已中断")
        raise
    except BrokenPipeError:
        sys.exit(0)
