"""A run on a Ray cluster of two workers leaves what a run without it leaves, whoever dies on the way."""

import json
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hanlin.curation.guarding import asking
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.rule import KEEP, Verdict, objection
from hanlin.curation.run import run
from hanlin.errors import ConfigError, DataError

pytest.importorskip("ray", reason='pip install "hanlin[cluster]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

from hanlin.curation.cluster import RayWorkers  # noqa: E402

NEAR = {"near": ("prompt", "prompt_chosen", "pair")}
GUARD = {"kind": "judge", "model": "x", "address": "http://x", "action": "drop"}


def text(seed: str, count: int) -> str:
    return "".join(random.Random(seed).choices([chr(code) for code in range(0x4E00, 0x5000)], k=count))


def pair(number: int) -> dict[str, str]:
    """Of ten rows one has the prompt of another, one its chosen answer, one its long rejected answer."""
    before = number - 1
    prompt, chosen, rejected = (before if number % 10 == last else number for last in (3, 5, 7))
    poison = "有毒" if number % 6 == 0 else ""
    return {
        "prompt": f"{text(f'prompt {prompt}', 24)}是什么意思？",
        "chosen": f"{text(f'chosen {chosen}', 160)}{poison}。请联系138123456{number % 90 + 10}。",
        "rejected": f"{text(f'rejected {rejected}', 1500)}。",
    }


def recipe(output: Path, files: Iterable[Path], **sections: Any) -> CurationRecipe:
    given = {
        "input": {"files": tuple(map(str, files))},
        "output": {"directory": str(output)},
        "duplicates": NEAR,
        "run": {"workers": 1, "chunk_bytes": 50_000},
    }
    return CurationRecipe.model_validate({**given, **sections})


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def assert_same(one: Path, other: Path) -> None:
    """Every file, byte for byte; the recipe in the account names its own folder."""
    names = sorted(file.name for file in one.iterdir() if file.is_file())
    assert names == sorted(file.name for file in other.iterdir() if file.is_file())
    assert {"rows-00000.jsonl", "decisions.jsonl", "set-aside.jsonl", "report.html", "curation.json"} <= set(names)
    for name in set(names) - {".recipe"}:
        assert (one / name).read_bytes() == (other / name).read_bytes().replace(b'"there"', b'"here"'), name


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files with rows in common, near-duplicates and broken lines; their paths are relative."""
    monkeypatch.chdir(tmp_path)
    made = [Path("zh/pairs.jsonl"), Path("en/pairs.jsonl")]
    for file, numbers in zip(made, (range(60), range(30, 90)), strict=True):
        file.parent.mkdir()
        lines = [json.dumps(pair(number), ensure_ascii=False) for number in numbers]
        file.write_text("\n".join([*lines[:30], "{broken secret-text", *lines[30:], "[1]"]) + "\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayWorkers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # with its own 15 it waits for all that a busy machine does besides
        with RayWorkers("local", tasks=2) as made:
            yield made


@pytest.fixture
def ray(cluster: RayWorkers, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> RayWorkers:
    """The cluster, entered from this test's folder."""
    monkeypatch.setattr(cluster, "_folder", os.getcwd())
    return cluster


def once(marker: Path) -> Callable[[], None]:
    """Kills the process that calls it, the first time."""

    def kill() -> None:
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return kill


def test_ray_leaves_what_one_process_leaves(ray: RayWorkers, files: list[Path], caplog, capfd) -> None:
    here = run(recipe(Path("here"), files), on_progress=quiet)
    seen: list[int] = []
    with caplog.at_level(logging.DEBUG):
        there = run(recipe(Path("there"), files), workers=ray, on_progress=lambda done, _: seen.append(done))
    assert here.counts == there.counts
    assert all(here.counts[f"dropped|duplicate_{name}"] for name in ("exact", *NEAR["near"]))
    assert here.total("aside") == 4
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert_same(Path("here"), Path("there"))
    assert "secret-text" not in caplog.text + "".join(capfd.readouterr())


def test_a_guard_is_a_pool_of_actors_and_one_that_dies_is_replaced(ray: RayWorkers, files: list[Path]) -> None:
    kill = once(Path("killed").absolute())

    def judge(prompt: str, answer: str | None) -> Verdict:
        return objection("poison") if "毒" in (answer or prompt) else KEEP

    def open_guard() -> Callable[[str, str | None], Verdict]:
        def guard(prompt: str, answer: str | None) -> Verdict:
            kill()
            return judge(prompt, answer)

        return guard

    run(recipe(Path("here"), files, guard=GUARD), guard=asking(judge), on_progress=quiet)
    seen: list[tuple[int, int]] = []
    there = run(
        recipe(Path("there"), files, guard=GUARD),
        workers=ray,
        guard=ray.asking(open_guard, actors=3, gpus=0),  # one more than there is room for
        on_progress=quiet,
        on_guarded=lambda done, total: seen.append((done, total)),
    )
    assert Path("killed").exists()
    assert there.counts["dropped|guard"] > 0
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    assert_same(Path("here"), Path("there"))


def test_a_worker_that_dies_changes_nothing(ray: RayWorkers, files: list[Path]) -> None:
    """One dies while it reads, one while it curates, one while it groups a band."""

    class Deadly:
        def __init__(self) -> None:
            self.stages = 0

        def read(self, read, sources):
            kill = once(Path("reader").absolute())

            def deadly(source):
                for place, chunk in enumerate(read(source)):
                    if place == 2:
                        kill()
                    yield chunk

            return ray.read(deadly, sources)

        def each(self, work, jobs):
            self.stages += 1
            kill = once(Path(f"worker-{self.stages}").absolute())

            def deadly(job):
                kill()
                return work(job)

            return ray.each(deadly, jobs)

    run(recipe(Path("here"), files), on_progress=quiet)
    run(recipe(Path("there"), files), workers=Deadly(), on_progress=quiet)
    assert all(Path(name).exists() for name in ("reader", "worker-1", "worker-2", "worker-4"))
    assert_same(Path("here"), Path("there"))


def test_a_run_that_was_killed_goes_on_with_ray_or_without(ray: RayWorkers, files: list[Path]) -> None:
    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    run(recipe(Path("here"), files), on_progress=quiet)
    for first, then in ((ray, None), (None, ray)):
        with pytest.raises(KeyboardInterrupt):
            run(recipe(Path("there"), files), workers=first, on_progress=kill)
        finished = {file: file.stat().st_mtime_ns for file in Path("there/.work").glob("*.done.json")}
        assert finished
        seen: list[dict[Path, int]] = []

        def look(done: int, total: int) -> None:
            seen.append({file: file.stat().st_mtime_ns for file in finished})  # noqa: B023

        run(recipe(Path("there"), files), workers=then, on_progress=look)
        assert seen[-1] == finished, "a finished chunk was curated again"
        assert_same(Path("here"), Path("there"))
        shutil.rmtree("there")


def test_what_goes_wrong_on_a_worker_is_one_line(ray: RayWorkers, files: list[Path], monkeypatch) -> None:
    Path("cut.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd no such frame")
    with pytest.raises(DataError, match=r"cut\.jsonl\.zst is damaged"):
        run(recipe(Path("out"), [*files, Path("cut.jsonl.zst")]), workers=ray, on_progress=quiet)

    def open_guard() -> None:
        raise ConfigError("no such model")

    guard = ray.asking(open_guard, actors=1, gpus=0)
    with pytest.raises(ConfigError, match="no such model"):
        run(recipe(Path("guarded"), files, guard=GUARD), workers=ray, guard=guard, on_progress=quiet)
    monkeypatch.setattr(ray, "_folder", "/no/such/folder")
    with pytest.raises(DataError, match=r"/no/such/folder is not there on .* that all machines share"):
        run(recipe(Path("lost"), files), workers=ray, on_progress=quiet)


def test_addresses_that_lead_nowhere_are_one_line() -> None:
    for address in ("127.0.0.1:1", "127.0.0.1:port"):
        with pytest.raises(ConfigError, match="no cluster answers"):
            RayWorkers(address)
    with pytest.raises(ConfigError, match="start it on a machine of the cluster"):
        RayWorkers("ray://localhost:10001")
