"""Several processes are one run: the same numbers on 1, 2 and 4 ranks, killed and resumed with any number of them."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import hanlin
from hanlin.errors import CheckpointError
from hanlin.training.checkpoint import checkpoints
from hanlin.training.metrics import read_metrics
from hanlin.training.parallel import World
from hanlin.training.shares import divide, shared_streams
from tiny import random_pairs
from tiny_objectives import recipe_of
from tiny_ranks import (
    assert_alike,
    assert_equal,
    free_port,
    join_ranks,
    numbers,
    resumable,
    start_ranks,
    train_ranks,
    weights,
)
from tiny_run import write_recipe

# Shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_every_example_goes_to_one_rank_and_loads_are_even(ranks: int):
    examples = random_pairs(40, longest=60)
    parts = divide(examples, ranks)
    assert sorted(index for part in parts for index in part) == list(range(40))
    loads = [sum(examples[index].num_tokens for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(example.num_tokens for example in examples)
    assert divide(examples, ranks) == parts
    assert divide(examples[:2], 4)[2:] == [[], []]


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_all_ranks_have_as_many_streams(number: int):
    """Own ones first; together they hold every example, and what is repeated is the shortest."""
    from hanlin.data.pack import pack_pairs

    examples = random_pairs(number)
    shortest = min(range(number), key=lambda index: examples[index].num_tokens)
    found = [list(shared_streams(examples, pack_pairs, World(rank, 4), max_tokens=40)) for rank in range(4)]
    assert len({len(one) for one in found}) == 1
    seen: list[int] = []
    for one, part in zip(found, divide(examples, 4), strict=True):
        own = [index for indices, _ in one for index in indices][: len(part)]
        assert sorted(own) == part
        seen += own
        assert all(indices == [shortest] for indices, _ in one[len(one) - (len(one) - _own(one, part)) :])
    assert sorted(seen) == list(range(number))


def _own(streams: list[Any], part: list[int]) -> int:
    """How many streams hold the rank's own examples."""
    left, count = len(part), 0
    while left:
        left -= len(streams[count][0])
        count += 1
    return count


# The same numbers --------------------------------------------------------------------------------------------------

CASES = {
    "orpo": (2, "none"),
    "orpo sharded": (4, "full"),
    "sft": (2, "full"),
    "dpo": (4, "none"),
    "reward": (2, "full"),
    "pretraining": (4, "full"),
}


def recipe_for(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    training = {"save_every": 2, "keep_last": 9, "evaluate_every": 4} | changes.pop("training", {})
    if name.startswith("orpo"):
        return write_recipe(folder, training=training, **changes)
    return recipe_of(folder, name, training=training, **changes)


@pytest.mark.parametrize("name", CASES)
def test_ranks_learn_what_one_process_learns(tmp_path: Path, name: str):
    size, shard = CASES[name]
    recipe = recipe_for(tmp_path, name)
    train_ranks(recipe, size, f"parallel.shard={shard}")
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    assert_alike(one, tmp_path / "run")
    assert {path.name for path in one.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    for path in checkpoints(tmp_path / "run"):
        mine, theirs = weights(path), weights(one / "checkpoints" / path.name)
        assert all((tensor - theirs[key]).norm() <= 1e-5 * tensor.norm() for key, tensor in mine.items())


def test_sharded_adapters(tmp_path: Path):
    """A frozen bf16 base beside fp32 adapters; bf16 products differ by the order in which gradients are added."""
    recipe = write_recipe(tmp_path, lora={"rank": 4}, model={"dtype": "bfloat16", "compute": "bfloat16"})
    train_ranks(recipe, 2, "parallel.shard=full")
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    for here, there in zip(numbers(one), numbers(tmp_path / "run"), strict=True):
        assert here["loss" if "loss" in here else "eval_nll_loss"] == pytest.approx(
            there["loss" if "loss" in there else "eval_nll_loss"], rel=3e-2
        )
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        mine, theirs = (safetensors.torch.load_file(run / file) for run in (one, tmp_path / "run"))
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert (tensor - theirs[key]).norm() <= 0.1 * tensor.norm().clamp(min=1e-3), key


def test_sharded_bf16_weights(tmp_path: Path):
    """Rounded at random, so equal up to that: every rank draws for its own rows. Whole checkpoints go on."""
    model = {"dtype": "bfloat16", "compute": "bfloat16"}
    training = {"optimizer": "adamw_bf16", "steps": 4, "save_every": 2, "learning_rate": 1e-2}
    recipe = write_recipe(tmp_path, model=model, training=training)
    train_ranks(recipe, 2, "parallel.shard=full")
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    mine, theirs = ([record["loss"] for record in numbers(run) if "loss" in record] for run in (one, tmp_path / "run"))
    assert mine == pytest.approx(theirs, rel=3e-2)
    start, here, there = weights(tmp_path / "model"), weights(one), weights(tmp_path / "run")
    for name, tensor in here.items():
        moved = (tensor - start[name]).norm()
        assert (tensor - there[name]).norm() <= 0.3 * moved, name
    run, place = resumable(tmp_path, "run", tmp_path / "again", step=2)
    train_ranks(run, 2, place, "parallel.shard=full", resume=True)
    assert_equal(tmp_path / "run", tmp_path / "again" / "run")


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs of one process ("one"), and of two sharded ranks ("run")."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_for(folder, "orpo", training={"steps": 6, "weight_decay": 0.01})
    train_ranks(recipe, 2, "parallel.shard=full")
    hanlin.train(recipe, overrides=[f"output.directory={folder / 'one'}"])
    return folder


@pytest.mark.parametrize(
    ("source", "size", "shard"), [("run", 1, "none"), ("run", 4, "full"), ("one", 2, "full"), ("run", 2, "none")]
)
def test_resumed_with_another_number_of_ranks(finished: Path, tmp_path: Path, source: str, size: int, shard: str):
    recipe, place = resumable(finished, source, tmp_path)
    if size == 1:
        hanlin.train(recipe, overrides=[place], resume=True)
    else:
        train_ranks(recipe, size, place, f"parallel.shard={shard}", resume=True)
    assert_alike(finished / "one", tmp_path / "run")


def test_resumed_with_as_many_ranks_is_uninterrupted_bit_for_bit(finished: Path, tmp_path: Path):
    recipe, place = resumable(finished, "run", tmp_path)
    train_ranks(recipe, 2, place, "parallel.shard=full", resume=True)
    assert_equal(finished / "run", tmp_path / "run")


@pytest.mark.parametrize(("file", "size"), [("__0_0.distcp", 0.5), ("__1_0.distcp", 0.9), (".metadata", 0.5)])
def test_a_cut_checkpoint_is_named_in_one_line(finished: Path, tmp_path: Path, file: str, size: float):
    recipe, place = resumable(finished, "run", tmp_path)
    cut = tmp_path / "run" / "checkpoints" / "step-000004" / "state" / "shards" / file
    os.truncate(cut, int(cut.stat().st_size * size))
    with pytest.raises(
        CheckpointError, match=r"step-000004 cannot be read .*: remove it and --resume goes on"
    ) as caught:
        hanlin.train(recipe, overrides=[place], resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_rank_ends_the_run_and_any_number_goes_on(finished: Path, tmp_path: Path, seed: int):
    """SIGKILL of one of two at a random moment; torchrun would end the other, which here ends by itself."""
    source = random.Random(seed)
    recipe = shutil.copy(finished / "recipe.toml", tmp_path / "recipe.toml")
    place = f"output.directory={tmp_path / 'run'}"
    processes = start_ranks(recipe, 2, place, "training.save_every=1", f"parallel.shard={('none', 'full')[seed]}")
    while not checkpoints(tmp_path / "run") and all(process.is_alive() for process in processes):
        time.sleep(0.005)
    time.sleep(source.uniform(0, 0.2))
    processes[seed].kill()
    codes = join_ranks(processes)
    if codes != [0, 0]:  # it may have been done
        assert codes[seed] == -signal.SIGKILL
        assert codes[1 - seed] not in (0, None)
        error = (tmp_path / f"error-{1 - seed}.txt").read_text()
        assert "another process of this run is gone" in error
        assert "--resume" in error
    for path in checkpoints(tmp_path / "run"):
        hanlin.load(path)
    assert checkpoints(tmp_path / "run")
    hanlin.train(recipe, overrides=[place, "training.save_every=1"], resume=True)
    assert_alike(finished / "one", tmp_path / "run")


def test_sigterm_on_one_rank_stops_all_after_the_same_step(finished: Path, tmp_path: Path):
    recipe = shutil.copy(finished / "recipe.toml", tmp_path / "recipe.toml")
    run, place = tmp_path / "run", [f"output.directory={tmp_path / 'run'}", "training.steps=400"]
    processes = start_ranks(recipe, 2, *place)
    while len(read_metrics(run) if run.exists() else []) < 3 and all(process.is_alive() for process in processes):
        time.sleep(0.005)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert join_ranks(processes) == [0, 0]
    last = read_metrics(run)[-1]["step"]
    assert last < 400
    assert [path.name for path in checkpoints(run)][-1] == f"step-{last:06d}"
    assert not (run / "config.json").exists()
    assert not (run / ".running").exists()


def test_a_loss_that_is_not_finite_stops_every_rank(finished: Path, tmp_path: Path):
    recipe = shutil.copy(finished / "recipe.toml", tmp_path / "recipe.toml")
    overrides = [f"output.directory={tmp_path / 'run'}", "training.learning_rate=1e30", "training.warmup=0"]
    assert join_ranks(start_ranks(recipe, 2, *overrides)) == [1, 1]
    for rank in range(2):
        error = (tmp_path / f"error-{rank}.txt").read_text()
        assert "is not finite; nothing was updated. Pairs of this step: row-" in error


# The command -------------------------------------------------------------------------------------------------------


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return subprocess.run(
        [*command, "-m", "hanlin", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )


@pytest.mark.slow
def test_torchrun_trains_and_one_rank_speaks(tmp_path: Path):
    recipe = write_recipe(tmp_path, training={"steps": 2})
    answer = torchrun(recipe)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("done 完成") == 1
    assert answer.stderr.count("step 2/2") == 1
    hanlin.load(tmp_path / "run")
    again = torchrun(recipe)
    assert again.returncode != 0
    assert "rank 1: " in again.stderr
    assert "holds a finished model" in again.stderr
