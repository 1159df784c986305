"""Ray gives the rows that one machine gives: rules, near-duplicates, guard, and a run that is killed and goes on."""

import json
from pathlib import Path

import pytest

from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.rule import KEEP, Verdict, objection
from hanlin.curation.run import run

pytest.importorskip("ray", reason="pip install hanlin[cluster]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from hanlin.curation.cluster import RayCluster  # noqa: E402


def pair(number: int) -> dict[str, str]:
    return {
        "prompt": f"请介绍第{number}种水果的特点，并说明它适合在什么季节吃。",
        "chosen": f"第{number % 40}种水果甘甜多汁，{'有毒，' if number % 7 == 0 else ''}秋天成熟，适合在九月食用。"
        + f"请联系138123456{number % 90 + 10}。",
        "rejected": f"不知道{number}。",
    }


def recipe(output: Path, files: list[Path], **sections: dict) -> CurationRecipe:
    return CurationRecipe.model_validate(
        {
            "input": {"files": tuple(map(str, files))},
            "output": {"directory": str(output)},
            "duplicates": {"near": ("prompt", "prompt_chosen", "pair")},
            "run": {"workers": 2, "chunk_bytes": 3000},
            **sections,
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for folder, numbers in (("zh", range(60)), ("en", range(30, 90))):
        (tmp_path / folder).mkdir()
        made.append(tmp_path / folder / "pairs.jsonl")
        lines = [json.dumps(pair(number), ensure_ascii=False) for number in numbers]
        made[-1].write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def cluster():
    def open_guard(recipe: CurationRecipe):
        def guard(prompt: str, answer: str | None) -> Verdict:
            return objection("poison") if "毒" in (answer or prompt) else KEEP

        return guard

    with RayCluster("local", open_guard=open_guard, cores=2) as made:
        yield made


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def assert_same(one: Path, other: Path) -> None:
    names = ("decisions.jsonl", "set-aside.jsonl", "README.md", "precision.csv", "report.html", "rows-00000.jsonl")
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_ray_gives_the_same_rows(cluster, files: list[Path], tmp_path: Path) -> None:
    here = run(recipe(tmp_path / "here", files), on_progress=quiet)
    there = run(recipe(tmp_path / "there", files), cluster=cluster, on_progress=quiet)
    assert here.counts == there.counts
    assert here.total("dropped") > 20
    assert_same(tmp_path / "here", tmp_path / "there")


def test_a_guard_is_asked_by_a_pool_of_actors(cluster, files: list[Path], tmp_path: Path) -> None:
    guard = {"guard": {"kind": "judge", "model": "x", "address": "http://x", "action": "drop"}}
    guard["run"] = {"workers": 2, "chunk_bytes": 3000, "guard_actors": 2}
    judge = cluster._open_guard(None)
    run(recipe(tmp_path / "here", files, **guard), guard=judge, on_progress=quiet)
    seen: list[tuple[int, int]] = []
    there = run(
        recipe(tmp_path / "there", files, **guard),
        cluster=cluster,
        on_progress=quiet,
        on_guarded=lambda done, total: seen.append((done, total)),
    )
    assert there.counts["dropped|guard"] > 0
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    assert_same(tmp_path / "here", tmp_path / "there")


def test_a_run_that_was_killed_on_ray_goes_on_anywhere(cluster, files: list[Path], tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        raise KeyboardInterrupt

    run(recipe(tmp_path / "whole", files), on_progress=quiet)
    for name, again in (("here", None), ("there", cluster)):
        with pytest.raises(KeyboardInterrupt):
            run(recipe(tmp_path / name, files), cluster=cluster, on_progress=kill)
        assert list((tmp_path / name / ".work").glob("*.done.json"))
        run(recipe(tmp_path / name, files), cluster=again, on_progress=quiet)
        assert_same(tmp_path / "whole", tmp_path / name)
