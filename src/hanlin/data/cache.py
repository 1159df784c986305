"""Encoded examples on disk, so that a second run over the same files starts at once.

One file for each set of data files under each way to encode them. Its name is a hash of all that decides what comes
out: the bytes and names of the files, the tokenizer, the chat format, every setting, and the text of the code that does
it, so that no version number can be forgotten. What is found is checked against a hash of its own; what cannot be read
is encoded again, and what cannot be written is not kept. Both are said, neither stops a run. Small files are not worth
it, and beyond four gigabytes the entries that were used longest ago go.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from hanlin.data.files import find_files
from hanlin.data.groups import Prompt
from hanlin.data.lengths import LengthReport, Quantiles
from hanlin.data.sources import RowReport
from hanlin.types import EncodedPair, Tokens

WORTH_BYTES = 2**20  # of data files: a megabyte is encoded in about a second
LIMIT_BYTES = 4 * 10**9
_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600.0  # a file that is still half-written by then belongs to a run that was killed


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """The examples of some data files that are left after fitting, and what became of the others."""

    examples: Sequence[EncodedPair] | Sequence[Tokens] | Sequence[Prompt]
    rows: RowReport
    lengths: LengthReport


def remembered(
    folder: Path,
    paths: Sequence[str],
    settings: Callable[[], Mapping[str, object]],
    encode: Callable[[], EncodedFiles],
    *,
    on_note: Callable[[str], None],
) -> EncodedFiles:
    """What `encode` gives for the data files that `paths` stand for, read from `folder` where it is known.

    `settings` gives all that `encode` depends on besides the files and the code, as JSON values. Raises what `encode`
    raises, and what finding the files raises.
    """
    files, ignored = find_files(paths)
    stamps = _stamps(files)
    if sum(size for size, _ in stamps) < WORTH_BYTES:
        return encode()
    try:
        entry = folder / (entry_name(files, ignored, settings()) + _SUFFIX)
    except OSError:
        return encode()  # which says what is wrong with a file that cannot be read
    if (found := _read(entry, on_note)) is not None:
        return found
    made = encode()
    if _stamps(files) == stamps:  # else the name may be that of other bytes than were encoded
        _write(entry, made, on_note)
    return made


def entry_name(files: Sequence[Path], ignored: Sequence[Path], settings: Mapping[str, object]) -> str:
    """Hash of all that decides what the files become. Names count: rows without an id are named after their file."""
    digest = hashlib.sha256(code_version().encode())
    for file in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(json.dumps([str(file), content]).encode())
    digest.update(json.dumps([[str(file) for file in ignored], settings], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def code_version(package: Path = Path(__file__).parents[1]) -> str:
    """Hash of the code between a file and its ids: the rooms `data` and `text`, and the types."""
    digest = hashlib.sha256()
    for path in [
        package / "types.py",
        *sorted((package / "data").glob("*.py")),
        *sorted((package / "text").glob("*.py")),
    ]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _stamps(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Size and time of change of each file; (0, 0) for one that cannot be looked at, which reading will name."""
    return [(found.st_size, found.st_mtime_ns) if (found := _look(file)) else (0, 0) for file in files]


def _look(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _read(entry: Path, on_note: Callable[[str], None]) -> EncodedFiles | None:
    """The entry, or None where there is none or none that is whole."""
    try:
        if not entry.is_file():
            return None
        with safe_open(entry, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in ("ids", "lengths", "text")}
            written = (file.metadata() or {}).get("sha256")
        if written != _checksum(arrays):
            raise ValueError("its content is not what was written")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        on_note(f"{entry} cannot be read ({error}): the data is encoded again, and the file replaced")
        return None
    _mark_used(entry)
    return _unpacked(arrays)


def _mark_used(entry: Path) -> None:
    """What is over the limit goes by this time; where it cannot be set, the time of writing stays."""
    try:
        os.utime(entry)
    except OSError:
        return


def _write(entry: Path, made: EncodedFiles, on_note: Callable[[str], None]) -> None:
    """Under a temporary name, then renamed; nobody ever sees half of it."""
    arrays = _packed(made)
    partial: Path | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, prefix=".", suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            file.write(safetensors.numpy.save(arrays, metadata={"sha256": _checksum(arrays)}))
        os.replace(partial, entry)
        trim(entry.parent, limit_bytes=LIMIT_BYTES)
    except OSError as error:
        on_note(f"{entry.parent} cannot be written ({error.strerror or error}): encoded pairs are not kept there")
        if partial is not None:
            partial.unlink(missing_ok=True)


def trim(folder: Path, *, limit_bytes: int) -> None:
    """Remove the entries used longest ago, until the others have at most `limit_bytes`, and what killed runs left."""
    aged = [(found.st_mtime, found.st_size, path) for path in folder.glob(f"*{_SUFFIX}") if (found := _look(path))]
    total = 0
    for _, size, path in sorted(aged, reverse=True):
        total += size
        if total > limit_bytes:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.partial"):
        if (found := _look(path)) and time.time() - found.st_mtime > _STALE_SECONDS:
            path.unlink(missing_ok=True)


def _packed(made: EncodedFiles) -> dict[str, np.ndarray]:
    """ids [sum of lengths] int32, lengths int32 [P, 3] of prompt, chosen and rejected ([P, 2] of a text: ids
    and as many 0 and 1), and JSON as bytes.
    """
    parts = [example.parts for example in made.examples]
    lengths = np.array([[len(part) for part in one] for one in parts], dtype=np.int32)
    flat = chain.from_iterable(chain.from_iterable(parts))
    ids = np.fromiter(flat, dtype=np.int32, count=int(lengths.sum()))
    names = [[one.id, one.category, one.fault] if isinstance(one, EncodedPair) else [one.id] for one in made.examples]
    text = json.dumps({"names": names, "rows": asdict(made.rows), "lengths": asdict(made.lengths)})
    return {"ids": ids, "lengths": lengths, "text": np.frombuffer(text.encode(), dtype=np.uint8)}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> EncodedFiles:
    """The other way round: all that was a tuple is one again."""
    ids, lengths = arrays["ids"], arrays["lengths"]
    text = json.loads(arrays["text"].tobytes())
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    runs = [tuple(ids[start:stop].tolist()) for start, stop in zip([0, *ends], ends, strict=False)]
    if lengths.shape[1] == 3:
        thirds = zip(runs[::3], runs[1::3], runs[2::3], text["names"], strict=True)
        examples = [EncodedPair(prompt, chosen, rejected, *names) for prompt, chosen, rejected, names in thirds]
    else:
        halves = zip(runs[::2], runs[1::2], text["names"], strict=True)
        examples = [Tokens(ids, tuple(map(bool, scored)), *names) for ids, scored, names in halves]
    rows, fit = text["rows"], text["lengths"]
    tuples = {"files": tuple(rows["files"]), "ignored": tuple(rows["ignored"]), "examples": _tuples(rows["examples"])}
    spread = {name: Quantiles(**values) for name, values in fit["lengths"].items()}
    histogram = tuple((upper, count) for upper, count in fit["histogram"])
    return EncodedFiles(
        examples,
        RowReport(**(rows | tuples)),
        LengthReport(**(fit | {"examples": _tuples(fit["examples"]), "lengths": spread, "histogram": histogram})),
    )


def _tuples(lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in lists.items()}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("ids", "lengths", "text"):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
