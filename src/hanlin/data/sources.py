"""Files of rows become a list of preferences or conversations and a report of every row that was left out.

JSON, JSON Lines, CSV, Parquet, folders of them, datasets of the Hugging Face hub. Surprising: a `.json` file may hold
JSON Lines and a `.jsonl` file a JSON array (the hub is full of both), so the first characters decide; lines end at
"\\n" alone, since text may hold other line separators; of a hub dataset with named splits only the training files are
read. Torch is never imported, polars only for Parquet.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar

from hanlin.data.files import SUFFIXES, find_files, labels_of
from hanlin.data.messages import BadRow
from hanlin.data.packed import bare_suffix, opened
from hanlin.data.rows import COLUMNS, OPENAI, read_row
from hanlin.data.tables import TABLES, read_table
from hanlin.errors import DataError
from hanlin.types import Preference

NUM_EXAMPLES = 5  # bad rows named for each reason
_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 4096  # in memory at a time

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowReport:
    """What reading did: `kept` of `rows` rows; the others counted by reason.

    `examples` names the first few of each reason ("pairs.jsonl, line 12: …"). `ignored` are files that lay in a folder
    or dataset and were not read.
    """

    files: tuple[str, ...]
    rows: int
    kept: int
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        return self.rows - self.kept

    def lines(self) -> list[str]:
        """The report for people: one line of totals, one for each reason with its first example."""
        totals = f"{self.rows} rows in {len(self.files)} files: {self.kept} kept, {self.skipped} skipped"
        worst_first = sorted(self.reasons.items(), key=lambda item: -item[1])
        notes = [f"  {count} × {reason}, first in {self.examples[reason][0]}" for reason, count in worst_first]
        ignored = [f"  not read: {', '.join(self.ignored)}"] if self.ignored else []
        return [totals, *notes, *ignored]


@dataclass(frozen=True, slots=True)
class RowForm(Generic[T]):
    """What the rows of some data are: `read` makes one of them of a parsed row and its name, or raises BadRow.

    `expected` says so in words. A row has all columns of one of the `required` sets; `columns` are those that are
    looked at.
    """

    read: Callable[[Any, str], T]
    expected: str
    required: tuple[frozenset[str], ...]
    columns: frozenset[str]
    suffixes: tuple[str, ...] = SUFFIXES


PAIRS = RowForm(
    read=read_row,
    expected="preference pairs (prompt, chosen, rejected)",
    required=(frozenset(("chosen", "rejected")), frozenset(OPENAI)),
    columns=COLUMNS,
)


def read_preferences(
    paths: Sequence[str | Path], *, on_bad_row: Literal["error", "skip"] = "error"
) -> tuple[list[Preference], RowReport]:
    """Read every pair of the files, folders and hub datasets in `paths`; see `read_files`."""
    return read_files(paths, PAIRS, on_bad_row=on_bad_row)


def read_files(
    paths: Sequence[str | Path], form: RowForm[T], *, on_bad_row: Literal["error", "skip"] = "error"
) -> tuple[list[T], RowReport]:
    """Read every row of the files, folders and hub datasets in `paths`, in the order given.

    A folder's files are read in the order of their paths. A hub dataset is "org/name", "org/name:subset" (a word in
    the files' names, such as "zh" or "train_prefs") or either with "@revision". `on_bad_row="error"` stops at the
    first file with a bad row; "skip" leaves bad rows out and counts them in the report. Raises DataError for files
    that cannot be read, for bad rows, and when no row is left; FetchError for the hub.
    """
    files, ignored = find_files([paths] if isinstance(paths, str | Path) else paths, suffixes=form.suffixes)
    kept: list[T] = []
    rows = RowCount()
    for file, label in zip(files, labels_of(files), strict=True):
        kept += read_file(file, label, form, rows, on_bad_row=on_bad_row)
    return kept, rows.report(files, ignored, kept=len(kept))


class RowCount:
    """Counts rows while files are read, and what is wrong with the bad ones."""

    def __init__(self) -> None:
        self.rows = 0
        self.reasons: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, bad: BadRow, place: str) -> None:
        self.reasons[bad.reason] = self.reasons.get(bad.reason, 0) + 1
        if len(named := self.examples.setdefault(bad.reason, [])) < NUM_EXAMPLES:
            named.append(f"{place}: {bad}")

    def report(self, files: Sequence[Path], ignored: Sequence[Path], *, kept: int) -> RowReport:
        """The report of all files. Raises DataError where no row was kept."""
        if not kept:
            reason = max(self.reasons, key=lambda name: self.reasons[name])
            first = self.examples[reason][0]
            raise DataError(
                f"none of {self.rows} rows can be used; {self.reasons[reason]} × {reason}, first in {first}"
            )
        return RowReport(
            files=tuple(map(str, files)),
            rows=self.rows,
            kept=kept,
            reasons=self.reasons,
            examples={reason: tuple(named) for reason, named in self.examples.items()},
            ignored=tuple(map(str, ignored)),
        )


def read_file(
    file: Path, label: str, form: RowForm[T], count: RowCount, *, on_bad_row: Literal["error", "skip"]
) -> Iterator[T]:
    """The good rows of one file, one after another; `label` begins the names of rows without an id."""
    first_bad, num_bad, before = "", 0, count.rows
    unit, numbered = _read_rows(file, form)
    for number, row in numbered:
        count.rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            made = form.read(row, f"{label}:{number}")
        except BadRow as bad:
            count.add(bad, f"{file}, {unit} {number}")
            first_bad = first_bad or f"{file}, {unit} {number}: {bad}"
            num_bad += 1
        else:
            yield made
    rows = count.rows - before
    if not rows:
        raise DataError(f"{file} holds no rows; expected {form.expected}")
    if num_bad and on_bad_row == "error":
        more = f" ({num_bad - 1} more bad rows of {rows} in this file)" if num_bad > 1 else ""
        skip = ', or set on_bad_row = "skip" to leave such rows out' if num_bad < rows else ""
        raise DataError(f"{first_bad}{more}; mend it{skip}")


def _read_rows(path: Path, form: RowForm[Any]) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What rows are counted in ("row" or "line"), and the rows with their numbers from 1."""
    suffix = bare_suffix(path)
    try:
        if suffix == ".parquet":
            return "row", enumerate(_read_parquet(path, form), start=1)
        with opened(path) as file:
            head = file.read(65536)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise DataError(f"{path} is empty (0 bytes); expected {form.expected}")
    refuse_foreign(path, head)
    if suffix in TABLES:
        return "row", enumerate(_read_table(path), start=1)
    if suffix in (".txt", ".md"):
        return "line", iter([(1, {"text": _read_text(path)})])
    start = head.removeprefix(_BOM).lstrip()[:1]
    if suffix == ".json" or start == b"[":
        rows = _read_array(path, form)
        if rows is not None:
            return "row", enumerate(rows, start=1)
    return "line", _read_lines(path)


def _read_table(path: Path) -> Iterator[Any]:
    with opened(path) as file:
        yield from read_table(path, file)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise DataError for a file that begins as none of ours does: a pointer in place of the data, or UTF-16."""
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the data; fetch it with `git lfs pull`")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")


def _read_array(path: Path, form: RowForm[Any]) -> list[Any] | None:
    """The rows of a JSON file; None where it holds one object after another and is read by lines."""
    text = _read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return None
        cut = "; the file ends too early, was a copy cut off?" if _is_cut(text, error) else ""
        raise DataError(f"{path} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}{cut}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON that can be read: {_json_trouble(error)}") from None
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and any(not columns.isdisjoint(value) for columns in form.required):
        return [value]
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        hint = f"; save the list under {lists[0]!r} as the file" if lists else ""
        raise DataError(
            f"{path} holds one object with the keys {', '.join(value) or 'none'}; expected a list of rows{hint}"
        )
    raise DataError(f"{path} holds a {type(value).__name__}; expected a list of rows")


def _read_text(path: Path) -> str:
    with opened(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise DataError(f"{path} ends inside a character: the file ends too early, was a copy cut off?") from None
        _refuse_encoding(path, data, error)


def _refuse_encoding(path: Path, data: bytes, error: UnicodeDecodeError) -> NoReturn:
    line = data.count(b"\n", 0, error.start) + 1
    byte = f"byte 0x{data[error.start]:02x} at offset {error.start}, line {line}"
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        hint = "save it as UTF-8"
    else:
        hint = "it may be GB18030: iconv -f GB18030 -t UTF-8"
    raise DataError(f"{path} is not UTF-8: {byte}; {hint}") from None


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether nothing but the end of the text is wrong with it."""
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")


def _json_trouble(error: ValueError | RecursionError) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Each line that is not blank, parsed, or the BadRow that says why it cannot be."""
    offset = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.isspace() and line:
                yield number, _parse_line(line, start)


def _parse_line(line: bytes, start: int) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return BadRow("the last line is cut off", "it ends inside a character; was a copy or a run cut off?")
        at = f"byte 0x{line[error.start]:02x} at offset {start + error.start} of the file"
        return BadRow("not UTF-8", f"{at}; save it as UTF-8")
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            return BadRow(
                "the last line is cut off", f"{error.msg}, column {error.colno}; was a copy or a run cut off?"
            )
        return BadRow("the line is not JSON", f"{error.msg}, column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BadRow("the line is not JSON", _json_trouble(error))


def _read_parquet(path: Path, form: RowForm[Any]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as dicts of the columns that matter."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); expected {form.expected}")
    refuse_foreign(path, head)
    import polars

    try:
        columns = list(polars.read_parquet_schema(path))
        known = [column for column in columns if column in form.columns]
        wanted = known if any(one <= set(known) for one in form.required) else columns
        scan = polars.scan_parquet(path).select(wanted)
        height = scan.select(polars.len()).collect().item()
        for offset in range(0, height, _PARQUET_ROWS):
            yield from scan.slice(offset, _PARQUET_ROWS).collect().iter_rows(named=True)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
