"""Files that are packed with gzip or zstd, read and written as if they were not.

Surprising: a file that was cut off is an error. Python's gzip says so by itself; zstandard's own reader takes it for a
short one.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hanlin.errors import ConfigError, DataError

PACKED = (".gz", ".zst")


def bare_suffix(path: Path) -> str:
    """The suffix that says what the file holds: ".jsonl" of rows.jsonl and of rows.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes that the file holds. Raises DataError where it is damaged, OSError where it cannot be read."""
    if path.suffix not in PACKED:
        with path.open("rb") as stream:
            yield stream
        return
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    if path.suffix == ".zst":
        damaged = (_zstandard().ZstdError,)
    with path.open("rb") as raw:
        try:
            inner: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else _Frames(raw, path)
            with io.BufferedReader(inner, 1 << 20) as stream:
                yield stream
        except damaged as error:
            raise DataError(f"{path} is damaged: {error}; was a copy cut off?") from None


@contextmanager
def packing(file: IO[bytes], suffix: str) -> Iterator[Any]:
    """Something to write to that packs into `file` as a name with this suffix says; the file itself for any other."""
    if suffix == ".zst":
        with _zstandard().ZstdCompressor(level=3).stream_writer(file, closefd=False) as writer:
            yield writer
    elif suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as writer:
            yield writer
    else:
        yield file


class _Frames(io.RawIOBase):
    """What a file of zstd frames holds. The library's own reader takes a file that was cut off for a short one."""

    def __init__(self, raw: IO[bytes], file: Path) -> None:
        super().__init__()
        self._raw, self._file, self._start = raw, file, _zstandard().ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._ready = self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._packed or self._raw.read(1 << 15)
            self._packed = b""
            if not packed:
                if self._frame is not None:
                    raise DataError(f"{self._file} is damaged: it ends in the middle of a frame; was a copy cut off?")
                return 0
            self._frame = self._frame or self._start()
            self._ready = self._frame.decompress(packed)
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError('.zst files need zstandard: pip install "hanlin[curate]"') from None
    return zstandard
