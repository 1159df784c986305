"""Shows an answer while it comes: as Markdown in a terminal, as it is everywhere else.

Finished blocks are printed for good, only the one that still grows is drawn anew, so nothing flickers and nothing is
lost when an answer is taller than the window. Surprises: single newlines stay (poems), HTML is text (`vector<int>`),
link targets are visible, and lines of Chinese break between characters, not before a comma: rich breaks at blanks only,
so a sign that it takes for one, and that has no width, is put where a line may end and taken out again when drawn.
"""

import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_SECONDS_BETWEEN_DRAWINGS = 0.08
_BREAK = "\x1f"  # white space for Python's `\s`, zero columns for rich
_WIDE = (
    "\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6\U00020000-\U0003fffd"
)
# No line begins or ends with these (W3C, Requirements for Chinese Text Layout, "prohibition rules").
_NOT_FIRST = re.escape("，。、；：？！）》〉」』】〕〗…—～·％”’,.;:?!)]}%")
_NOT_LAST = re.escape("（《〈「『【〔〖“‘([{$￥")
_PLACES = re.compile(
    rf"(?<=[^\s{_NOT_LAST}])(?:(?<=[{_WIDE}])(?=[^\s{_NOT_FIRST}])|(?=[{_WIDE}])(?=[^\s{_NOT_FIRST}]))"
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


class View(Protocol):
    """Where an answer appears; a context manager that is closed when the answer ends, however it does."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def push(self, text: str, /) -> None: ...


def view(console: Console, *, markdown: bool) -> View:
    """Markdown where it is wanted and the console is a terminal; else the text as it is."""
    return MarkdownView(console) if markdown and console.is_terminal else PlainView(console)


class PlainView:
    """Passes the text on, piece by piece; in a terminal control characters become visible signs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ends_line = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ends_line:
            self._write("\n")

    def push(self, text: str) -> None:
        """Show the next piece."""
        if text:
            self._write(text.translate(_CONTROL) if self._console.is_terminal else text)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
        self._ends_line = text.endswith("\n")


class MarkdownView:
    """Draws the growing block, and prints it when the next one begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._open = ""
        self._printed = False
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        self._print(self._open)

    def push(self, text: str) -> None:
        """Show the next piece."""
        self._open += text.translate(_CONTROL)
        *finished, self._open = split_blocks(self._open)
        for block in finished:
            self._live.update("")
            self._print(block)
        now = time.monotonic()
        if finished or now - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._drawn_at = now
            above = "\n" if self._printed else ""
            self._live.update(Tail(render(self._open), above), refresh=True)

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._printed:
            self._console.print()
        self._console.print(render(text))
        self._printed = True


def split_blocks(text: str) -> list[str]:
    """The text in pieces; all but the last cannot change any more.

    A piece begins after an empty line outside code, with a line that is not indented: an indented one may belong to a
    list item before it.
    """
    starts, at = [0], 0
    fence, after_empty = "", False
    for line in text.split("\n"):
        if after_empty and line and not line[0].isspace():
            starts.append(at)
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            fence = ""
        after_empty = not fence and not line.strip()
        at += len(line) + 1
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def render(text: str) -> RenderableType:
    """The text as Markdown."""
    markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.parsed = _PARSER.parse(text)
    for token in markdown.parsed:
        for child in token.children or ():
            _adapt(child)
    return _Drawn(markdown)


def _adapt(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
    elif token.type == "text":
        token.content = _PLACES.sub(_BREAK, token.content)


class _Drawn:
    """Markdown without the signs at which lines were allowed to break, and without empty lines at its ends."""

    def __init__(self, content: Markdown) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        written = [number for number, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        for line in lines[written[0] : written[-1] + 1] if written else ():
            for text, style, control in line:
                yield Segment(text.replace(_BREAK, ""), style, control)
            yield Segment.line()


class Tail:
    """The last lines of something, as many as the window has room for; `above` comes first."""

    def __init__(self, content: RenderableType, above: str = "") -> None:
        self._content, self._above = content, above

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        room = max(1, options.size.height - 2)
        if self._above and len(lines) < room:
            yield Segment(self._above)
        for number, line in enumerate(lines[-room:]):
            if number:
                yield Segment.line()
            yield from line
