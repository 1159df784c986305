"""Files of rows, read in chunks of bounded size and written so that a killed run leaves none half.

Surprising: a row travels as the bytes it was read as, so that a row which no rule changes is written byte for byte.
Reading never fails for a row's sake: what cannot be read comes as a `Trouble` with its place.
"""

import base64
import errno
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hanlin.config import missing_file
from hanlin.data.files import data_files
from hanlin.data.messages import BadRow
from hanlin.data.packed import bare_suffix, opened, packing
from hanlin.data.sources import refuse_foreign
from hanlin.data.tables import TABLES, read_table
from hanlin.errors import DataError

WRITTEN = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
CHUNKS_IN_FILE = 1_000_000  # at most; a chunk's number is its file's, times this, and its own
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a row could not be read; `size` bytes long."""

    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file in order: `rows[i]` is row `first + i` (from 1), as bytes of JSON, or what is wrong with it.

    `number` orders the chunks of all files; `source` names the file where its path would be too long.
    """

    number: int
    file: str
    source: str
    first: int
    rows: tuple[bytes | Trouble, ...]
    consumed: int


def find_shards(names: Sequence[str]) -> list[Path]:
    """Files of the recipe, folders searched. Raises DataError."""
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if not path.exists():
            raise DataError(missing_file(path))
        found += data_files(path)[0]
    return found


def source_names(files: Sequence[Path]) -> list[str]:
    """Short names that tell the files apart: a file's own, with as many folders as it takes (zh/train.jsonl)."""
    paths = [file.absolute().parts for file in files]
    longest = max(map(len, paths), default=1)
    for length in range(1, longest):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return ["/".join(parts) for parts in paths]


def read_chunks(files: Sequence[Path], *, chunk_bytes: int, largest_row: int) -> Iterator[Chunk]:
    """All rows of all files; a chunk ends at the first row that reaches `chunk_bytes`, and with its file."""
    for place in range(len(files)):
        yield from read_file(files, place, chunk_bytes=chunk_bytes, largest_row=largest_row)


def read_file(files: Sequence[Path], place: int, *, chunk_bytes: int, largest_row: int) -> Iterator[Chunk]:
    """The chunks of one of the files, as `read_chunks` gives them."""
    file, source = files[place], source_names(files)[place]
    number, first, size = place * CHUNKS_IN_FILE, 1, 0
    rows: list[bytes | Trouble] = []
    for row in _read(file, largest_row):
        rows.append(row)
        size += len(row) if isinstance(row, bytes) else 100
        if size >= chunk_bytes:
            yield Chunk(number, str(file), source, first, tuple(rows), size)
            number, first, rows, size = number + 1, first + len(rows), [], 0
    if rows:
        yield Chunk(number, str(file), source, first, tuple(rows), size)


@dataclass(frozen=True, slots=True)
class Row:
    """Row `number` (from 1) of a file: its bytes and what they say, or in `trouble` why they cannot be read."""

    file: str
    number: int
    raw: bytes
    value: Any = None
    trouble: str = ""

    @property
    def place(self) -> str:
        """ "pairs.jsonl:12": what a row without an id is called."""
        return f"{Path(self.file).name}:{self.number}"


def read_rows(files: Sequence[Path], *, largest_row: int = 64_000_000) -> Iterator[Row]:
    """Every row of all files but blank lines, parsed."""
    for chunk in read_chunks(files, chunk_bytes=4_000_000, largest_row=largest_row):
        for number, raw in enumerate(chunk.rows, start=chunk.first):
            if isinstance(raw, Trouble):
                yield Row(chunk.file, number, b"", trouble=raw.reason)
            elif raw:
                yield parse_row(chunk.file, number, raw)


def parse_row(file: str, number: int, raw: bytes) -> Row:
    """A row from the bytes of its line, or in `trouble` why they are none."""
    try:
        text = raw.decode("utf-8", "surrogatepass")  # `json.loads` would guess at UTF-16
        return Row(file, number, raw, json.loads(text, object_pairs_hook=_object))
    except _TwiceError:
        return Row(file, number, raw, trouble="a key stands twice in an object")
    except UnicodeDecodeError:
        return Row(file, number, raw, trouble="not UTF-8")
    except (ValueError, RecursionError):
        return Row(file, number, raw, trouble="the line is not JSON")


class _TwiceError(ValueError):
    """JSON that says two things of one key: readers take one, and the other would pass unseen."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _TwiceError
    return made


def _read(file: Path, largest: int) -> Iterator[bytes | Trouble]:
    suffix = bare_suffix(file)
    try:
        if suffix == ".parquet":
            yield from _parquet(file)
            return
        with opened(file) as stream:
            refuse_foreign(file, stream.peek(64))
            if suffix in TABLES:
                yield from _table(file, stream, largest)
                return
            head = stream.readline(65536)
            if suffix == ".json" or head.removeprefix(_BOM).lstrip()[:1] == b"[":
                yield from _array(file, (head + stream.read()).removeprefix(_BOM))
                return
            yield from _lines(stream, head.removeprefix(_BOM), largest)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None


def _table(file: Path, stream: IO[bytes], largest: int) -> Iterator[bytes | Trouble]:
    for row in read_table(file, stream):
        if isinstance(row, BadRow):
            yield Trouble(row.reason, 0)
            continue
        raw = _as_bytes(row)
        yield raw if len(raw) <= largest else Trouble("the row is too large", len(raw))


def _as_bytes(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _lines(stream: IO[bytes], head: bytes, largest: int) -> Iterator[bytes | Trouble]:
    """Every line but blank ones (they count, as editors number them: as empty bytes)."""
    line = head
    while line:
        size = len(line)
        if not line.endswith(b"\n") and size >= 65536:
            line += stream.readline(max(1, largest - size))
            size = len(line)
            if size >= largest and not line.endswith(b"\n"):
                while (more := stream.readline(1 << 20)) and (size := size + len(more)) and not more.endswith(b"\n"):
                    pass
                yield Trouble("the row is too large", size)
                line = stream.readline(65536)
                continue
        yield line.rstrip(b"\r\n") if line.strip() else b""
        line = stream.readline(65536)


def _array(file: Path, data: bytes) -> list[bytes]:
    """The rows of a JSON list, or of JSON Lines in a .json file."""
    if not data.strip():
        return []
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        lines = data.split(b"\n")
        if lines[0].strip().endswith(b"}"):
            return [line.strip() for line in lines]
        raise DataError(f"{file} is neither a JSON list nor JSON Lines: {_json_trouble(error)}") from None
    rows = value if isinstance(value, list) else [value]
    return [_as_bytes(row) for row in rows]


def _json_trouble(error: ValueError | RecursionError) -> str:
    """What is wrong, and where, without the text."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8, byte 0x{error.object[error.start]:02x} at offset {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}; was a copy cut off?"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _parquet(file: Path) -> Iterator[bytes]:
    import polars

    with file.open("rb") as stream:
        refuse_foreign(file, stream.read(64))
    try:
        frame = polars.scan_parquet(file)
        total = frame.select(polars.len()).collect().item()
        for start in range(0, total, 2000):
            for row in frame.slice(start, 2000).collect().iter_rows(named=True):
                yield _as_bytes(_plain(row))
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise DataError(f"{file} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it: bytes as the UTF-8 that they are, or a data address; NaN as null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"data:application/octet-stream;base64,{base64.b64encode(value).decode()}"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into a DataError that names the next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        help = "free some space and run the same command again: it goes on where it stopped" if full else "check it"
        raise DataError(f"{path.parent} cannot be written: {error.strerror or error}; {help}") from None


def write_file(path: Path, pieces: Iterable[bytes], *, lasting: bool = True) -> None:
    """Write under a temporary name, then rename; `lasting`, so that it is there after a power cut too. Raises DataError
    when the disk is full, leaving nothing half. A name that ends in .gz or .zst is packed.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # process ids of two machines may be equal
    with writing(path):
        try:
            with partial.open("wb") as file:
                with packing(file, path.suffix) as writer:
                    for piece in pieces:
                        writer.write(piece)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def line_of(record: dict[str, Any]) -> bytes:
    """A record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_rows(path: Path, lines: Iterable[bytes]) -> None:
    """Rows, each as bytes of JSON, as the suffix says: .jsonl (packed or not), .json (a list), .parquet.

    Nothing is written over. Raises DataError.
    """
    check_writable(path)
    if path.suffix == ".parquet":
        _write_parquet(path, lines)
    elif path.suffix == ".json":
        write_file(path, _listed(lines))
    else:
        write_file(path, (line + b"\n" for line in lines))


def check_writable(path: Path) -> None:
    """Raise DataError where `write_rows` could not write."""
    if not path.name.endswith(WRITTEN):
        raise DataError(f"{path} has the suffix {path.suffix!r}; expected one of {', '.join(WRITTEN)}")
    if path.exists():
        raise DataError(f"{path} exists; name another file, or remove it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is no folder; make it first")


def _listed(lines: Iterable[bytes]) -> Iterator[bytes]:
    before = b"[\n"
    for line in lines:
        yield before + line
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


def _write_parquet(path: Path, lines: Iterable[bytes]) -> None:
    import polars

    try:
        buffer = io.BytesIO()
        polars.DataFrame([json.loads(line) for line in lines], infer_schema_length=None).write_parquet(buffer)
    except (polars.exceptions.PolarsError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{path}: these rows are no table ({why}); write .jsonl instead") from None
    write_file(path, [buffer.getvalue()])
