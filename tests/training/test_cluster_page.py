"""The examples of docs/cluster.md can be parsed, and say what the program takes."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from hanlin.config import load_recipe
from hanlin.training.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize("script", blocks("bash"))
def test_bash(script: str, tmp_path: Path):
    path = tmp_path / "script.sh"
    path.write_text(script)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-m hanlin train recipes/" in script


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml(text: str):
    yaml = pytest.importorskip("yaml")
    described = yaml.safe_load(text)
    assert {"apiVersion", "kind", "metadata", "spec"} == described.keys()
    if described["kind"] == "RayJob":
        cluster = described["spec"]["rayClusterSpec"]
        assert "hanlin curate recipe.toml --ray auto" in described["spec"]["entrypoint"]
        assert all(group["template"] == cluster["headGroupSpec"]["template"] for group in cluster["workerGroupSpecs"])
        return
    assert "hanlin, train, /work/recipe.toml, --resume" in text or "-m hanlin train /work/recipe.toml" in text
    if described["kind"] == "PyTorchJob":
        replicas = described["spec"]["pytorchReplicaSpecs"]
        assert replicas["Master"]["template"] == replicas["Worker"]["template"]


@pytest.mark.parametrize("source", blocks("python"))
def test_python(source: str):
    tree = ast.parse(source)
    names = {keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= names


@pytest.mark.parametrize("section", blocks("toml"))
def test_the_section_is_a_recipes(section: str, tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(f'{section}\n[model]\npath = "x"\n[data]\ntrain = ["y"]\n')
    assert load_recipe(Recipe, path).parallel.shard == "auto"


def test_recipes_that_are_named_exist():
    for name in re.findall(r"recipes/[\w./-]+\.toml", PAGE):
        assert (ROOT / name).is_file(), name
