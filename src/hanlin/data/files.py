"""Which files a path in a recipe stands for: a file, a folder, or a dataset of the Hugging Face hub.

Surprising: of a hub dataset with named splits only the training files are read; of a folder tables (.csv) only where
it holds nothing else, since they mostly are notes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hanlin.config import missing_file
from hanlin.data.packed import PACKED, bare_suffix
from hanlin.data.tables import TABLES
from hanlin.errors import DataError, FetchError

_TEXTS = (".json", ".jsonl", ".ndjson", *TABLES)
SUFFIXES = (*_TEXTS, ".parquet", *(text + packed for text in _TEXTS for packed in PACKED))
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?::([\w./-]+))?(?:@([\w./-]+))?")


def fetch_dataset(name: str, *, cache: Path | None = None) -> Path:
    """Folder of the hub dataset "org/name[:subset][@revision]" with its data files, downloaded if need be.

    Without a network what an earlier call fetched is used. Raises FetchError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    match = _HUB_NAME.fullmatch(name)
    assert match is not None
    repository, subset, revision = match.groups()
    patterns = [f"*{subset or ''}*{end}" for suffix in SUFFIXES for end in (suffix, f"/*{suffix}")]
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns, cache_dir=cache
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FetchError(
            f"{name} is no file or folder here, and as a dataset of the hub it cannot be fetched: {why}; "
            "check the name and the network, or download it elsewhere and name the folder"
        ) from None
    return Path(folder)


def find_files(paths: Sequence[str | Path], *, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[Path], list[Path]]:
    """The data files that `paths` stand for, in the order of reading, and the files beside them that are not read.

    Raises DataError where there are none, FetchError for the hub.
    """
    if not paths:
        raise DataError("no data was given; name a file, a folder or a dataset of the hub")
    files: list[Path] = []
    ignored: list[Path] = []
    for item in paths:
        path = Path(item).expanduser()
        if path.exists():
            found, other = data_files(path, suffixes)
        elif match := _hub_name(item):
            found, other = _choose_split(fetch_dataset(match[0]), subset=match[2])
            if not found:
                raise DataError(f"{item} holds no data; expected {expected(suffixes)}, found {_names(other)}")
        else:
            raise DataError(missing_file(path))
        files += found
        ignored += other
    return files, ignored


def data_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[Path], list[Path]]:
    """The data files of a file or folder that exists, and those beside them. Raises DataError where there are none."""
    if not path.is_dir():
        return [_checked_suffix(path, suffixes)], []
    found, other = _walk(path, suffixes)
    if not found:
        raise DataError(f"{path} holds no data; expected {expected(suffixes)}, found {_names(other)}")
    return found, other


def expected(suffixes: Sequence[str]) -> str:
    """Suffixes in words."""
    plain = [suffix for suffix in suffixes if not suffix.endswith(PACKED)]
    return f"{', '.join(plain)}, or the texts packed as .gz or .zst"


def _hub_name(item: str | Path) -> re.Match[str] | None:
    """Whether a path that does not exist can mean a dataset of the hub: no data suffix, and its folder is not here."""
    if not isinstance(item, str) or item.endswith(SUFFIXES) or Path(item).parent.is_dir():
        return None
    return _HUB_NAME.fullmatch(item)


def _walk(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[Path], list[Path]]:
    """Data files anywhere below, sorted by path, and the others; hidden files and folders are nobody's business."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    seen = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    data = [path for path in seen if path.name.endswith(tuple(suffixes)) and path.name not in _METADATA]
    data = [path for path in data if bare_suffix(path) not in TABLES] or data
    return data, [path for path in seen if path not in set(data)]


def _choose_split(folder: Path, *, subset: str | None) -> tuple[list[Path], list[Path]]:
    """A hub dataset's files named after the subset, of these the training split where splits are named; the others."""
    files, other = _walk(folder)

    def having(words: str, among: list[Path]) -> list[Path]:
        named = re.compile(rf"(?<![A-Za-z0-9])({words})(?![A-Za-z0-9])")
        return [path for path in among if named.search(path.relative_to(folder).as_posix())]

    chosen = having(re.escape(subset), files) if subset else files
    held_out = having("test|validation|valid|dev|eval", chosen)
    chosen = having("train", chosen) or [path for path in chosen if path not in held_out] or chosen
    return chosen, [*(path for path in files if path not in chosen), *other]


def _checked_suffix(path: Path, suffixes: Sequence[str]) -> Path:
    if path.name.endswith(tuple(suffixes)):
        return path
    hint = {
        ".arrow": "; save the dataset with to_parquet or to_json",
        ".gz": "; unpack it first",
        ".xlsx": "; save the table as CSV (UTF-8)",
        ".zip": "; unpack it first",
    }.get(path.suffix.lower(), "")
    raise DataError(f"{path} has the suffix {path.suffix!r}; expected one of {expected(suffixes)}{hint}")


def _names(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def labels_of(files: Sequence[Path]) -> list[str]:
    """What rows without an id are named after: the file's name, or its whole path where two files share the name."""
    names = [file.name for file in files]
    return [str(file) if names.count(file.name) > 1 else file.name for file in files]
