"""Documents of any number, encoded once into a token file and read from there a piece at a time.

A source is encoded document by document into a folder: all ids end to end, and a table that says where each piece
begins. Both are mapped, not read, so memory does not grow with the corpus; only one document at a time is held whole
(a JSON array, unlike JSON Lines, is too). A document is BOS where the family has one, its ids, and the piece that ends
texts; one longer than `max_length` is cut into pieces that overlap by one token, so that every token but the first is
scored exactly once. Pieces after the first have no BOS.
"""

import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import numpy as np

from hanlin.config import shown
from hanlin.data import files as data_files
from hanlin.data.cache import entry_name
from hanlin.data.files import find_files, labels_of
from hanlin.data.messages import BadRow, check_characters, shown_columns
from hanlin.data.sources import RowCount, RowForm, RowReport, read_file
from hanlin.errors import DataError
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Document, Tokens

SUFFIXES = (*data_files.SUFFIXES, ".txt", ".md")
_IDS, _PIECES, _DOCUMENTS, _ABOUT = "ids.bin", "pieces.bin", "documents.bin", "about.json"
_PIECE = np.dtype([("start", "<i8"), ("length", "<i4"), ("file", "<i4"), ("row", "<i8")])
_log = logging.getLogger(__name__)


def read_document(row: Any, name: str) -> Document:
    """The document in one parsed row; `name` is its id, which counts rows. Raises BadRow."""
    if not isinstance(row, dict) or "text" not in row:
        columns = shown_columns(", ".join(map(str, row))) if isinstance(row, dict) else shown(row)
        raise BadRow("the text is missing", f"expected the column 'text', found {columns or 'none'}")
    text = row["text"]
    if not isinstance(text, str):
        raise BadRow("the text is not text", shown(text))
    if not text.strip():
        raise BadRow("the text is empty", "a document needs text")
    check_characters(text)
    return Document(text, id=name)


DOCUMENTS = RowForm(
    read=read_document,
    expected="documents (text)",
    required=(frozenset(("text",)),),
    columns=frozenset(("text",)),
    suffixes=SUFFIXES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How documents become pieces: ids around each document (None: none), and the longest piece."""

    begin: int | None
    end: int | None
    max_length: int


class Corpus(Sequence[Tokens]):
    """The pieces of one source, in a folder that `encode_corpus` has written."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        self.labels: list[str] = about["labels"]
        rows = about["rows"]
        examples = {reason: tuple(named) for reason, named in rows["examples"].items()}
        tuples = {"files": tuple(rows["files"]), "ignored": tuple(rows["ignored"]), "examples": examples}
        self.rows = RowReport(**(rows | tuples))
        self.ids = np.memmap(folder / _IDS, dtype="<u4", mode="r")
        self.pieces = np.memmap(folder / _PIECES, dtype=_PIECE, mode="r")
        self.documents = np.memmap(folder / _DOCUMENTS, dtype="<i8", mode="r")  # the first piece of each
        if [len(self.ids), len(self.pieces), len(self.documents)] != about["sizes"]:
            raise ValueError("its files are not as long as they were written")

    def __len__(self) -> int:
        return len(self.pieces)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start, length, file, row = self.pieces[index].item()
        ids = tuple(self.ids[start : start + length].tolist())
        return Tokens(ids, (False, *(True,) * (length - 1)), id=f"{self.labels[file]}:{row}")

    def runs_of(self, documents: Sequence[int]) -> list[tuple[int, int]]:
        """The pieces of these documents, as (first, after the last)."""
        last = len(self.documents) - 1
        ends = [int(self.documents[one + 1]) if one < last else len(self.pieces) for one in documents]
        return [(int(self.documents[one]), end) for one, end in zip(documents, ends, strict=True)]


class Joined(Sequence[Any]):
    """Several runs of several sequences, end to end, by reference."""

    def __init__(self, parts: Sequence[tuple[Sequence[Any], int, int]]) -> None:
        """`parts` are (sequence, first, after the last)."""
        self._parts = [part for part in parts if part[1] < part[2]]
        self._ends = np.array(list(accumulate(stop - start for _, start, stop in self._parts)), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        sequence, _, stop = self._parts[number]
        return sequence[stop - int(self._ends[number]) + index]


def outside(corpus: Corpus, runs: Sequence[tuple[int, int]]) -> list[tuple[Sequence[Any], int, int]]:
    """What lies between the runs, which are apart and ascending, as parts of a `Joined`."""
    edges = [0, *(edge for run in runs for edge in run), len(corpus)]
    return [(corpus, start, stop) for start, stop in list(pairwise(edges))[::2]]


def open_corpus(
    paths: Sequence[str],
    cut: Cut,
    tokenizer: Tokenizer,
    *,
    on_bad_row: Literal["error", "skip"],
    cache: Path | None,
    settings: Callable[[], dict[str, object]],
    on_note: Callable[[str], None] = _log.warning,
) -> tuple[Corpus, str]:
    """The corpus of some files and a name for all that decides what is in it; encoded now unless `cache` has it.

    Without a cache it lives in a temporary folder as long as it is used. Raises DataError and FetchError as reading
    does.
    """
    files, ignored = find_files(paths, suffixes=SUFFIXES)
    name = entry_name(files, ignored, {**settings(), "cut": asdict(cut), "on_bad_row": on_bad_row})

    def encode(folder: Path) -> None:
        encode_corpus(files, ignored, folder, cut, tokenizer, on_bad_row=on_bad_row)

    if cache is None:
        folder = Path(tempfile.mkdtemp(prefix="hanlin-"))
        try:
            encode(folder)
            corpus = Corpus(folder)
        except BaseException:
            shutil.rmtree(folder)
            raise
        weakref.finalize(corpus, shutil.rmtree, folder, ignore_errors=True)
        return corpus, name
    entry = cache / name
    if entry.is_dir():
        try:
            return Corpus(entry), name
        except (OSError, ValueError, KeyError, TypeError) as error:
            on_note(f"{entry} cannot be read ({error}): the documents are encoded again")
            shutil.rmtree(entry)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="."))
    try:
        encode(partial)
        os.replace(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Corpus(entry), name


def encode_corpus(
    files: Sequence[Path],
    ignored: Sequence[Path],
    folder: Path,
    cut: Cut,
    tokenizer: Tokenizer,
    *,
    on_bad_row: Literal["error", "skip"],
) -> None:
    """Write a source's token file and tables into `folder`."""
    count, labels = RowCount(), labels_of(files)
    tokens = pieces = documents = 0
    with (
        (folder / _IDS).open("wb") as ids_file,
        (folder / _PIECES).open("wb") as pieces_file,
        (folder / _DOCUMENTS).open("wb") as documents_file,
    ):
        for number, (file, label) in enumerate(zip(files, labels, strict=True)):
            for document in read_file(file, label, DOCUMENTS, count, on_bad_row=on_bad_row):
                ids = [*_optional(cut.begin), *tokenizer.encode(document.text), *_optional(cut.end)]
                row = int(document.id.rpartition(":")[2])
                written = [(tokens + start, length, number, row) for start, length in cuts(len(ids), cut.max_length)]
                if not written:
                    continue  # a lone token predicts nothing
                _write(documents_file, np.array([pieces], dtype="<i8"))
                _write(ids_file, np.array(ids, dtype="<u4"))
                _write(pieces_file, np.array(written, dtype=_PIECE))
                tokens, pieces, documents = tokens + len(ids), pieces + len(written), documents + 1
    rows = count.report(files, ignored, kept=documents)
    about = {"labels": labels, "rows": asdict(rows), "sizes": [tokens, pieces, documents]}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def cuts(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the pieces of a document of `length` tokens: each but the first begins with a token that the
    one before ends with.
    """
    for start in range(0, length - 1, max(1, longest - 1)):
        yield start, min(longest, length - start)


def _optional(id: int | None) -> tuple[int, ...]:
    return () if id is None else (id,)


def _write(file: BinaryIO, values: np.ndarray) -> None:
    try:
        file.write(values.tobytes())
    except OSError as error:
        raise DataError(
            f"the encoded documents cannot be written ({error.strerror}): free space, or move HANLIN_CACHE"
        ) from None
