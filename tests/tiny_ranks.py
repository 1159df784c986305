"""Runs of several gloo processes, one thread each, forked from a server that has imported everything; and whether two
runs are alike.
"""

import json
import multiprocessing
import os
import shutil
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hanlin.training.metrics import read_metrics
from hanlin.training.parallel import local

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hanlin.api", "torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _become(number: int, size: int, port: int) -> None:
    """Make this process one of several."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip


def _rank(number: int, size: int, port: int, recipe: Path, overrides: tuple[str, ...], resume: bool) -> None:
    import hanlin

    _become(number, size, port)
    try:
        hanlin.train(recipe, overrides=overrides, resume=resume)
    except BaseException as error:
        (Path(recipe).parent / f"error-{number}.txt").write_text(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        raise


def _proc(file: str, key: str) -> int:
    """A number that the kernel keeps about this process."""
    lines = (line.split() for line in Path("/proc/self", file).read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{key}:")


def _load(number: int, size: int, port: int, recipe: Path, overrides: tuple[str, ...], model: Path) -> None:
    """Write down what it takes to make a session with another model: bytes read, and the most memory above what there
    was after the recipe's own had been loaded, so that code does not count.
    """
    from hanlin.config import load_recipe
    from hanlin.training.parallel import joined
    from hanlin.training.recipe import Recipe
    from hanlin.training.session import Session, open_material

    _become(number, size, port)
    settled = load_recipe(Recipe, recipe, overrides)
    other = load_recipe(Recipe, recipe, (*overrides, f"model.path={model}"))
    with joined(settled.parallel, "cpu") as world:
        Session(open_material(settled), recipe.parent / "small", resume=False, world=world)
        material = open_material(other)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        memory, read = _proc("status", "VmRSS"), _proc("io", "rchar")
        session = Session(material, recipe.parent / "run", resume=False, world=world)
        found = {"peak": 1024 * (_proc("status", "VmHWM") - memory), "read": _proc("io", "rchar") - read}
        found["own"] = sum(local(one.data).nbytes for one in session.model.parameters())
        (recipe.parent / f"loaded-{number}.json").write_text(json.dumps(found))
        world.wait()


def load_ranks(recipe: Path, size: int, *overrides: str, model: Path) -> list[dict[str, int]]:
    """Bytes that each rank of a run reads, needs at most and keeps when a model is loaded: "read", "peak", "own"."""
    port = free_port()
    given = [(number, size, port, recipe, overrides, model) for number in range(size)]
    started = [SERVER.Process(target=_load, args=one) for one in given]
    for process in started:
        process.start()
    assert join_ranks(started) == [0] * size
    return [json.loads((recipe.parent / f"loaded-{number}.json").read_text()) for number in range(size)]


def _assemble(number: int, size: int, port: int, recipe: Path, overrides: tuple[str, ...]) -> None:
    """Compare the model that a rank samples with to one that was never divided."""
    from hanlin.config import load_recipe
    from hanlin.models.lora import adapted, merge_lora
    from hanlin.training.parallel import joined
    from hanlin.training.recipe import Recipe
    from hanlin.training.session import Session, load_training_model, open_material

    _become(number, size, port)
    settled = load_recipe(Recipe, recipe, overrides)
    with joined(settled.parallel, "cpu") as world:
        material = open_material(settled)
        session = Session(material, recipe.parent / "run", resume=False, world=world)
        alone = load_training_model(material, on_note=print)
        for linear in (*adapted(session.model).values(), *adapted(alone).values()):
            linear.up.data.fill_(0.3)
        made = dict(session.division.assembled(session.model).named_parameters())
        merge_lora(alone)
        expected = {name: one.data.to(made[name].dtype) for name, one in alone.named_parameters()}
        assert made.keys() == expected.keys()
        assert all(torch.equal(one, expected[name]) for name, one in made.items())
        assert made["blocks.0.mlp.gate.weight"].dtype == torch.bfloat16
        world.wait()


def assemble_ranks(recipe: Path, size: int, *overrides: str) -> list[int | None]:
    """Exit codes of ranks that put the model together; 0 where it is the whole one bit for bit."""
    port = free_port()
    started = [SERVER.Process(target=_assemble, args=(number, size, port, recipe, overrides)) for number in range(size)]
    for process in started:
        process.start()
    return join_ranks(started)


def start_ranks(recipe: Path, size: int, *overrides: str, resume: bool = False) -> list[Any]:
    """The processes of one run."""
    port = free_port()
    started = [
        SERVER.Process(target=_rank, args=(number, size, port, recipe, overrides, resume)) for number in range(size)
    ]
    for process in started:
        process.start()
    return started


def join_ranks(processes: list[Any], *, seconds: float = 240) -> list[int | None]:
    """Exit codes; what hangs is killed and is None."""
    codes: list[int | None] = []
    for process in processes:
        process.join(seconds)
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
    return codes


def train_ranks(recipe: Path, size: int, *overrides: str, resume: bool = False) -> None:
    """Run a recipe on several ranks to its end."""
    codes = join_ranks(start_ranks(recipe, size, *overrides, resume=resume))
    assert codes == [0] * size, codes


def resumable(finished: Path, source: str, to: Path, *, step: int = 4) -> tuple[Path, str]:
    """A run that came to a step as `source` did: its recipe, and the setting that names its directory."""
    run, name = to / "run", f"step-{step:06d}"
    shutil.copytree(finished / source / "checkpoints" / name, run / "checkpoints" / name)
    for name in ("recipe.toml", "metrics.jsonl"):
        shutil.copy(finished / source / name, run)
    return run / "recipe.toml", f"output.directory={run}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def numbers(run: Path) -> list[dict[str, Any]]:
    """The diary without what a clock says."""
    timed = ("per_second", "generation_share")
    return [
        {key: value for key, value in record.items() if not any(word in key for word in timed)}
        for record in read_metrics(run)
    ]


def assert_alike(one: Path, other: Path) -> None:
    """Every number of the diary, the gradients' norms among them, and every weight, within 1e-5."""
    mine, theirs = numbers(one), numbers(other)
    assert [record["step"] for record in mine] == [record["step"] for record in theirs]
    for here, there in zip(mine, theirs, strict=True):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)
    here, there = weights(one), weights(other)
    for name, tensor in here.items():
        assert (tensor - there[name]).norm() <= 1e-5 * tensor.norm(), name


def assert_equal(one: Path, other: Path) -> None:
    """Bit for bit."""
    assert numbers(one) == numbers(other)
    here, there = weights(one), weights(other)
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
