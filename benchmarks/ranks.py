"""Two ranks on two cores next to one rank on one core, and how long a save in the background stops them.

The product itself runs, `hanlin train` under torchrun, with one thread a rank; speed is what metrics.jsonl says of each
step but the first two. The runs take turns. First of all both must have learnt the same: their losses are compared.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness import (
    OFFLINE,
    RESULTS,
    ROOT,
    WORKERS,
    BenchmarkError,
    describe_run,
    find_pairs,
    markdown_table,
    run_main,
    write_result,
)

WARMUP = 2
TARGET = 1.6
_TOLERANCE = 0.01  # of a loss in bf16, whose gradients are added in another order
_LOG_LINES = 15


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, `--quick` applied."""
    parser = argparse.ArgumentParser(description="Several ranks next to one; what a save costs.")
    parser.add_argument("--model", default="smollm2", help="a model by any name that Hanlin takes")
    parser.add_argument("--pairs", nargs="+", type=Path, help="files of preference pairs")
    parser.add_argument("--steps", type=int, default=6, help=f"of a run, the first {WARMUP} of which are not counted")
    parser.add_argument("--batch-pairs", type=int, default=16)
    parser.add_argument("--runs", type=int, default=2, help="of each number of ranks, by turns")
    parser.add_argument("--shard", choices=["none", "full"], default="none", help="how two ranks keep the weights")
    parser.add_argument("--output", type=Path, help=f"result page (default: {RESULTS.relative_to(ROOT)}/ranks.md)")
    parser.add_argument("--quick", action="store_true", help="one short run each; no result page")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.steps, arguments.batch_pairs, arguments.runs = WARMUP + 1, 2, 1
    elif arguments.output is None:
        arguments.output = RESULTS / "ranks.md"
    if arguments.steps <= WARMUP:
        parser.error(f"--steps {arguments.steps}: expected more than {WARMUP}")
    return arguments


def write_recipe(arguments: argparse.Namespace, folder: Path, **changes: Mapping[str, Any]) -> Path:
    """FOLDER/recipe.toml, which trains into FOLDER/run."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": arguments.model},
        "data": {"train": [str(path.resolve()) for path in find_pairs(arguments.pairs)]},
        "training": {"steps": arguments.steps, "batch_pairs": arguments.batch_pairs, "device": "cpu"},
        "parallel": {"shard": arguments.shard},
        "output": {"directory": str(folder / "run")},
    }
    for name, values in changes.items():
        sections[name] |= values
    folder.mkdir(parents=True)
    lines = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in sections.items()
    )
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def torchrun(num_ranks: int, *command: str, log: Path) -> None:
    """Run a command as so many ranks of one thread each; raises BenchmarkError with the log's end."""
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    with log.open("wb") as output:
        done = subprocess.run([*start, *command], env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
        raise BenchmarkError(f"{num_ranks} ranks failed with status {done.returncode}:\n{tail}")


def train(arguments: argparse.Namespace, num_ranks: int, folder: Path) -> list[dict[str, Any]]:
    """The steps that a run wrote down."""
    recipe = write_recipe(arguments, folder)
    torchrun(num_ranks, "-m", "hanlin", "train", str(recipe), log=folder / "log")
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def check_losses(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> None:
    """Both must learn the same thing."""
    for here, there in zip(one, other, strict=True):
        if abs(here["loss"] - there["loss"]) > _TOLERANCE * abs(here["loss"]):
            raise BenchmarkError(f"step {here['step']}: the loss is {here['loss']} on 1 rank, {there['loss']} on 2")


def measure_speed(arguments: argparse.Namespace, workspace: Path) -> dict[int, list[float]]:
    """Stream tokens a second of each counted step, by the number of ranks."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for run in range(arguments.runs):
        steps = {ranks: train(arguments, ranks, workspace / f"{run}-{ranks}") for ranks in speeds}
        check_losses(steps[1], steps[2])
        for ranks, found in steps.items():
            speeds[ranks] += [record["tokens_per_second"] for record in found[WARMUP:]]
            print(f"run {run + 1}  {ranks} ranks  {median(speeds[ranks]):8.1f} tokens/s", flush=True)
    return speeds


def measure_save(arguments: argparse.Namespace, shard: str, workspace: Path) -> dict[str, Any]:
    """What the worker says of saves with two ranks."""
    folder = workspace / f"save-{shard}"
    small = {"training": {"steps": 1, "batch_pairs": 2, "keep_last": 1, "save_every": 1}, "parallel": {"shard": shard}}
    recipe, answer = write_recipe(arguments, folder, **small), folder / "answer.json"
    torchrun(2, str(WORKERS / "ranks_save.py"), str(recipe), str(answer), log=folder / "log")
    return json.loads(answer.read_text(encoding="utf-8"))


def run_benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Measure, print, and write the result page."""
    facts = describe_run()
    speeds = measure_speed(arguments, workspace)
    one, two = (median(speeds[ranks]) for ranks in (1, 2))
    header = ["ranks, one thread each", "stream tokens/s (median step)", "range", "next to one"]
    rows = [
        [str(ranks), f"{median(found):.0f}", f"{min(found):.0f} to {max(found):.0f}", f"{median(found) / one:.2f}×"]
        for ranks, found in speeds.items()
    ]
    saves = {shard: measure_save(arguments, shard, workspace) for shard in ("none", "full")}
    saving = [
        [
            f'`shard = "{shard}"`',
            f"{found['state_bytes'] / 1e9:.2f}",
            f"{found['copy']:.2f}",
            f"{found['blocked'][0]:.2f}",
            f"{median(found['blocked'][1:]):.2f}",
            f"{median(found['whole']):.1f}",
        ]
        for shard, found in saves.items()
    ]
    titles = [
        "2 ranks",
        "state, GB",
        "one copy of it, s",
        "first save blocks, s",
        "later ones block, s",
        "whole after, s",
    ]
    verdict = f"Two ranks on two cores: {two / one:.2f} times one rank on one core (to reach: {TARGET})."
    body = "\n\n".join([verdict, markdown_table(header, rows), markdown_table(titles, saving)])
    print(f"\n{body}")
    if arguments.output is not None:
        facts |= {"Model": arguments.model, "Pairs of a step": str(arguments.batch_pairs), "Weights": arguments.shard}
        write_result(arguments.output, "Several ranks", facts, body)


if __name__ == "__main__":
    parsed = parse_arguments()
    sys.exit(run_main(partial(run_benchmark, parsed), name="ranks", needs={}))
