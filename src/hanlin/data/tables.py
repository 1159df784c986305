"""Tables of text, comma- or tab-separated, as rows: a dict of the columns that the first line names.

Everything is text, and an empty cell is null. A cell may hold line ends within quotation marks.
"""

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from hanlin.data.messages import BadRow
from hanlin.errors import DataError

TABLES = (".csv", ".tsv")
_BOM = b"\xef\xbb\xbf"
_LARGEST_CELL = 2**31 - 1  # the csv module's own limit is 128 KB


def read_table(path: Path, stream: IO[bytes]) -> Iterator[dict[str, str | None] | BadRow]:
    """Every row but blank lines, or what is wrong with it. Raises DataError for a table that cannot be taken apart."""
    lines = read_cells(path, stream)
    header = next(lines, [])
    if _is_broken(header):
        raise DataError(f"{path} is not UTF-8; save it as CSV UTF-8, or convert it: iconv -f GB18030 -t UTF-8")
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{path} has two columns of the name {min(twice)!r}; rename one")
    for cells in lines:
        if len(cells) != len(header):
            yield BadRow("a row has more or fewer cells than the header", f"{len(cells)} and {len(header)}")
        elif _is_broken(cells):
            yield BadRow("not UTF-8", "save the table as UTF-8")
        else:
            yield {name: cell or None for name, cell in zip(header, cells, strict=True)}


def read_cells(path: Path, stream: IO[bytes]) -> Iterator[list[str]]:
    """The cells of every line but blank ones, the header's among them. Raises DataError."""
    csv.field_size_limit(_LARGEST_CELL)
    texts = (line.decode("utf-8", "surrogateescape") for line in chain([stream.readline().removeprefix(_BOM)], stream))
    lines = csv.reader(texts, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
    try:
        yield from (cells for cells in lines if cells)
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}; is a quotation mark left open?") from None


def _is_broken(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return True
    return False
