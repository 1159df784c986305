"""The shape of the code, checked like any other behaviour: who may import whom and use what, how long things may be.

Imports go down the layers, never up and never sideways, whether at the top of a file or inside a function. Imports for
annotations only (`if TYPE_CHECKING`) do not count. Every check is shown a planted violation below, so that none of
them can fall asleep.
"""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "hanlin"
LAYERS = [  # a room may import only from rooms in the lines above its own
    {"types", "config", "errors"},
    {"text", "models"},
    {"data", "objectives", "generation"},
    {"training", "evaluation", "serving", "export", "curation"},
    {"api"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
MAX_FILE, MAX_FUNCTION = 400, 60
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc"}
# What may be imported, and the only modules (or rooms) that may. An empty set: nobody.
RESERVED = {
    "torch.distributed": {"training.parallel", "training.checkpoint", "training.saving", "training.tensor"},
    "transformers": set(),
    "trl": set(),
    "peft": set(),
    "wandb": {"training.trackers"},
    "tensorboard": {"training.trackers"},
    "torch.utils.tensorboard": {"training.trackers"},
    "trackio": {"training.trackers"},
}
MAY_PRINT = {"cli", "serving.terminal"}
WITHOUT_TORCH = {"text", "curation", "data.sources", "data.rows"}
SECONDS_TO_HELP = 1.0  # of one core


def module_name(path: Path, root: Path) -> str:
    """Dotted name below the package: "data.pack"; "data" for its __init__; "" for the package's own."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def is_annotation_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run: `if TYPE_CHECKING` blocks are left out."""
    for child in ast.iter_child_nodes(tree):
        if not is_annotation_only(child):
            yield child
            yield from nodes(child)


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports: `from a import b` gives "a.b", `import_module("a")` gives "a"."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(one.value) for one in node.args if isinstance(one, ast.Constant))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def size_violations(source: str, tree: ast.AST) -> Iterator[str]:
    if (lines := source.count("\n")) > MAX_FILE:
        yield f"{lines} lines, {MAX_FILE} are allowed: a noun is missing"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{node.name} has {lines} lines, {MAX_FUNCTION} are allowed"


def layer_violations(module: str, package: str, tree: ast.AST) -> Iterator[str]:
    here = module.split(".")[0]
    if here and here not in RANK:
        yield f"{here} is in no layer: give it a line in LAYERS"
    for name in imported(tree):
        first, _, rest = name.partition(".")
        if first != package:
            continue
        there = rest.split(".")[0]
        if there.startswith("__") or there == here or not here:
            continue
        if there not in RANK:
            yield f"imports {name}, which goes through the front door: name the room"
        elif here in RANK and (RANK[there] > RANK[here] or (RANK[there] == RANK[here] > 0)):
            yield f"imports {name}: {here} may not use {there}"


def use_violations(module: str, tree: ast.AST) -> Iterator[str]:
    for name in imported(tree):
        for reserved, places in RESERVED.items():
            if is_within(name, {reserved}) and not is_within(module, places):
                yield f"imports {name}: {' and '.join(sorted(places)) or 'nobody'} may"
        if is_within(name, {"torch"}) and is_within(module, WITHOUT_TORCH):
            yield f"imports {name}: {module.split('.')[0]} works without torch"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: relative imports hide the layer"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not is_within(module, MAY_PRINT):
            yield f"line {node.lineno}: prints; return text, or log"


def cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Import cycles, each told once. The package's own __init__ is left out: it imports its names on first use."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> Iterator[str]:
        if module in path:
            yield "import cycle: " + " -> ".join((*path[path.index(module) :], module))
        elif module not in done:
            for there in sorted(graph.get(module, ())):
                yield from visit(there, (*path, module))
            done.add(module)

    for module in sorted(graph):
        yield from visit(module, ())


def violations(root: Path) -> list[str]:
    """Everything that is wrong with the package in `root`, one line each."""
    trees = {}
    found = []
    for path in sorted(root.rglob("*.py")):
        module, source = module_name(path, root), path.read_text(encoding="utf-8")
        trees[module] = tree = ast.parse(source)
        complaints = [*size_violations(source, tree), *layer_violations(module, root.name, tree)]
        complaints += use_violations(module, tree)
        if bad := FORBIDDEN_NAMES.intersection(module.split(".")):
            complaints.append(f"{bad.pop()} says nothing: give the functions a home")
        found += [f"{path.relative_to(root.parent)}: {complaint}" for complaint in complaints]
    graph = {}
    for module, tree in trees.items():
        targets = {name.partition(".")[2] for name in imported(tree) if name.startswith(root.name + ".")}
        used = {target if target in trees else target.rpartition(".")[0] for target in targets}
        graph[module] = used - {"", module} if module else set()
    return found + list(cycles(graph))


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A small package to check."""
    root = folder / "house"
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n", encoding="utf-8")
    return root


def test_the_house_stands():
    assert not violations(SRC), "\n" + "\n".join(violations(SRC))


def test_a_clean_house_has_no_violations(tmp_path):
    files = {
        "__init__.py": "def __getattr__(name):\n    from house import api\n    return getattr(api, name)",
        "types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "config.py": "from house.errors import ConfigError",
        "errors.py": "class ConfigError(Exception): ...",
        "text/chat.py": "from house import __version__\nfrom house.types import Message",
        "training/parallel.py": "import torch.distributed as dist\nfrom house.models import transformer",
        "models/transformer.py": "import torch\nfrom house.models.layers import Linear",
        "models/layers.py": "import torch",
        "api.py": "def train():\n    from house.training.loop import run",
        "cli/__init__.py": "from house.cli import main",
        "cli/main.py": "from house.api import train\nfrom house.training.loop import run\nprint('hello')",
        "training/loop.py": "from house.objectives.orpo import orpo",
        "objectives/orpo.py": "import torch",
    }
    assert violations(plant(tmp_path, files)) == []


VIOLATIONS = {
    "upward": ({"models/a.py": "from house.data.pack import pack"}, "models may not use data"),
    "upward, in a function": ({"text/a.py": "def f():\n    import house.training.loop"}, "text may not use training"),
    "sideways": ({"training/a.py": "from house.evaluation import report"}, "training may not use evaluation"),
    "sideways on the second layer": ({"text/a.py": "from house import models"}, "text may not use models"),
    "the door for programs": ({"api.py": "from house.cli.demo import demo"}, "api may not use cli"),
    "through the front door": ({"training/a.py": "from house import train"}, "name the room"),
    "the whole package": ({"training/a.py": "import house"}, "name the room"),
    "a room in no layer": ({"zoo/a.py": ""}, "zoo is in no layer"),
    "relative": ({"text/a.py": "from .chat import f"}, "relative imports"),
    "torch in text": ({"text/a.py": "def f():\n    from torch.nn import functional"}, "works without torch"),
    "torch in sources": ({"data/sources.py": "import torch"}, "works without torch"),
    "torch in curation": ({"curation/a.py": "import torch"}, "works without torch"),
    "ranks in the model": ({"models/a.py": "from torch import distributed"}, "training.tensor may"),
    "ranks by attribute": ({"training/loop.py": "import torch\ntorch.distributed.barrier()"}, "training.tensor may"),
    "transformers": ({"export/a.py": "from transformers import AutoModel"}, "nobody may"),
    "trl, by its name in a string": ({"export/a.py": "import importlib\nimportlib.import_module('trl')"}, "nobody may"),
    "peft": ({"training/a.py": "import peft.tuners"}, "nobody may"),
    "a metrics service": ({"training/loop.py": "import wandb"}, "training.trackers may"),
    "print": ({"serving/api.py": "print('hello')"}, "line 1: prints"),
    "a long file": ({"types.py": "x = 1\n" * 400}, "401 lines"),
    "a long function": ({"types.py": "async def f():\n" + "    x = 1\n" * 60}, "f has 61 lines"),
    "a drawer": ({"data/utils.py": ""}, "utils says nothing"),
    "a drawer room": ({"data/helpers/a.py": ""}, "helpers says nothing"),
    "a cycle": (
        {
            "data/a.py": "from house.data.b import f",
            "data/b.py": "from house.data import c",
            "data/c.py": "def f():\n    from house.data.a import g",
        },
        "import cycle: data.a -> data.b -> data.c -> data.a",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_planted_violation_is_caught(name, tmp_path):
    files, expected = VIOLATIONS[name]
    found = violations(plant(tmp_path, files))
    assert len(found) == 1, found
    assert expected in found[0]


def run(code: str) -> tuple[str, float]:
    """What a fresh interpreter prints, and the CPU seconds it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not done.returncode, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def modules_of(*places: str) -> list[str]:
    names = (module_name(path, SRC) for path in sorted(SRC.rglob("*.py")))
    return [f"hanlin.{name}" for name in names if is_within(name, set(places))]


def test_torch_is_not_loaded_where_it_is_not_needed():
    modules = ["hanlin", "hanlin.types", "hanlin.config", *modules_of(*WITHOUT_TORCH)]
    printed, _ = run(f"import sys, {', '.join(modules)}; print('torch' in sys.modules)")
    assert printed == "False\n"


def test_help_is_instant():
    code = "import sys; sys.argv = ['hanlin', '--help']\nfrom hanlin.cli.app import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    printed, seconds = min((run(code) for _ in range(3)), key=lambda result: result[1])
    assert "train" in printed
    assert printed.splitlines()[-1] == "False", "hanlin --help loads torch"
    assert seconds < SECONDS_TO_HELP
