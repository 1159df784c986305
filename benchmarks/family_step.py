"""Training steps of SFT and of reward models: Hanlin beside TRL's trainers on the same examples.

On the CPU: SmolLM2-135M, all weights, AdamW, 8 examples a step; SFT on Chinese and English conversations as long as
they are, a reward model on preference pairs. TRL runs at its literal defaults, without checkpointing at several batch
sizes, and packed. A gate comes first: in fp32, loss and gradient norm of a step must agree, packed rows too. Then each
system runs in a process of its own, in turn. `--quick` shows in minutes that all of it works.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
    run_worker,
    versions,
    write_result,
)

BATCH = 8
TOLERANCE = 1e-4  # of the gate, relative
OPTIMIZED_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments, all fp32
CONVERSATIONS = [ROOT.parent / "shared" / "data" / name for name in ("alpaca_zh_500.json", "alpaca_en_500.json")]
TITLES = {"sft": "SFT", "reward": "Reward model"}
Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class System:
    """One thing to measure; what is special about it beside the common settings."""

    about: str
    worker: str
    micro_batch: int = BATCH
    checkpointing: bool = False
    packed: int = 0


def systems(objective: str, tokens_per_pass: int) -> dict[str, System]:
    """Everything that is compared, by name. TRL packs conversations only."""
    known = {
        "hanlin": System(f"bf16 compute, `tokens_per_pass = {tokens_per_pass}`", "family_hanlin.py"),
        "trl": System("its defaults: batch 8, gradient checkpointing", "family_trl.py", checkpointing=True),
    }
    for size in (8, 4, 2, 1):
        about = f"batch {size}, accumulated to 8, no checkpointing"
        known[f"trl-b{size}"] = System(about, "family_trl.py", micro_batch=size)
    for length in (1024, 2048) if objective == "sft" else ():
        about = f"packs of {length} tokens, one a step, no checkpointing"
        known[f"trl-packed-{length}"] = System(about, "family_trl.py", micro_batch=1, packed=length)
    return known


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, `--quick` applied."""
    parser = argparse.ArgumentParser(description="SFT and reward model steps: Hanlin beside TRL.")
    parser.add_argument("--objective", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--data", nargs="+", type=Path, help="files of one --objective: conversations or pairs")
    parser.add_argument("--model", default="smollm2", help="a model by any name that Hanlin takes")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4, help=f"timed steps of {BATCH} examples")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="times that each system runs")
    parser.add_argument("--tokens-per-pass", type=int, default=1024, help="Hanlin's budget for one pass")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, help="result page (default: benchmarks/results/family_step.md)")
    parser.add_argument("--quick", action="store_true", help="one round, one step, short rows; no result page")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.rounds, arguments.steps, arguments.max_length = 1, 1, 256
    elif arguments.output is None:
        arguments.output = RESULTS / "family_step.md"
    if min(arguments.rounds, arguments.steps) < 1 or arguments.warmup < 0:
        parser.error("--rounds and --steps must be at least 1, --warmup at least 0")
    if arguments.data and len(arguments.objective) > 1:
        parser.error("--data goes with one --objective")
    known = [name for objective in arguments.objective for name in systems(objective, 0)]
    if wrong := sorted(set(arguments.systems or ()) - set(known)):
        parser.error(f"--systems {wrong[0]}: there are {', '.join(dict.fromkeys(known))}")
    return arguments


@dataclass(frozen=True, slots=True)
class Bench:
    """One objective's comparison."""

    arguments: argparse.Namespace
    objective: str
    workspace: Path
    known: Mapping[str, System]

    def run(self, name: str, *, gate: bool = False) -> dict[str, Any]:
        """One process of the system; at the gate one fp32 step on a few short examples."""
        one = self.known[name]
        settings = {
            "objective": self.objective,
            "model": str(self.workspace / "model"),
            "pairs": str(self.workspace / ("gate.json" if gate else "rows.json")),
            "batch_pairs": BATCH,
            "micro_batch": (1 if one.packed else BATCH) if gate else one.micro_batch,
            "checkpointing": one.checkpointing,
            "packed": BATCH * self.arguments.max_length if gate and one.packed else one.packed,
            "tokens_per_pass": self.arguments.tokens_per_pass,
            "learning_rate": 1e-6,
            "optimizer": "adamw",
            "weights": "float32",
            "compute": "float32" if gate else "bfloat16",
            "device": "cpu",
            "warmup": 0 if gate else self.arguments.warmup,
            "lora": 0,
            "random_init": False,
            "compile": False,
            "attention": None,
            "head_mode": "fast",
            "matmul_rates": False,
        }
        return run_worker(WORKERS / one.worker, settings, workspace=self.workspace, environment=OFFLINE)


def check_gate(bench: Bench) -> str:
    """Loss and gradient norm of one fp32 step of every system beside ours; the sentence to publish, or an error."""
    mine, said = bench.run("hanlin", gate=True), []
    # A step is one batch here: systems that differ in nothing but the size of their batches would be the same run.
    alike = {(one.worker, one.packed, one.checkpointing): name for name, one in reversed(bench.known.items())}
    for name in sorted(set(alike.values()) - {"hanlin"}, key=list(bench.known).index):
        other = bench.run(name, gate=True)
        differences = [abs(mine[key] - other[key]) / abs(mine[key]) for key in ("loss", "grad_norm")]
        if max(differences) > TOLERANCE:
            raise BenchmarkError(
                f"{name} does not compute the same: loss {other['loss']:.6f} and gradient norm "
                f"{other['grad_norm']:.6f}, ours {mine['loss']:.6f} and {mine['grad_norm']:.6f}"
            )
        said.append(f"{name} {differences[0]:.1e} and {differences[1]:.1e}")
    return f"one fp32 step; relative differences of loss and gradient norm from ours: {'; '.join(said)}"


def measure(bench: Bench) -> Results:
    """Every system once a round, in turn; prints each run."""
    results: Results = {name: [] for name in bench.known}
    for number in range(1, bench.arguments.rounds + 1):
        for name in bench.known:
            result = bench.run(name)
            results[name].append(result)
            print(f"{bench.objective} {number} {name:16} {speed(result):.0f} tokens/s", flush=True)
    return results


def speed(result: Mapping[str, Any], *, seconds: str = "seconds") -> float:
    """Tokens of examples, padding left out, a second of the counted steps."""
    return sum(result["real"]) / sum(result[seconds])


def table(results: Results, known: Mapping[str, System]) -> str:
    """What each system reached, and ours beside it."""
    middle = {
        name: tuple(statistics.median(speed(one, seconds=key) for one in found) for key in ("seconds", "cpu_seconds"))
        for name, found in results.items()
    }
    peaks = {name: max(one["peak_bytes"] for one in found) for name, found in results.items()}
    above = {name: peak - OPTIMIZED_BYTES * results[name][0]["num_parameters"] for name, peak in peaks.items()}
    rows = []
    for name, (wall, cpu) in middle.items():
        ratios = (middle["hanlin"][0] / wall, middle["hanlin"][1] / cpu)
        rows.append(
            [
                f"{name}: {known[name].about}",
                f"{wall:.0f}",
                f"{cpu:.0f}",
                f"{peaks[name] / 1e9:.2f}",
                f"{above[name] / 1e9:.2f}",
                *(f"{ratio:.2f}x" for ratio in ratios),
                f"{above['hanlin'] / above[name]:.2f}x",
            ]
        )
    beside = ("ours beside it", "by CPU time", "memory above, ours beside it")
    return markdown_table(["system", "tokens/s", "tokens/CPU s", "peak GB", "above states GB", *beside], rows)


def compare(arguments: argparse.Namespace, objective: str, workspace: Path, facts: dict[str, str]) -> str:
    """Prepare, gate, measure: the section of one objective."""
    workspace.mkdir()
    known = systems(objective, arguments.tokens_per_pass)
    if arguments.systems:
        known = {name: known[name] for name in ("hanlin", *arguments.systems) if name in known}
    needed = BATCH * (arguments.warmup + arguments.steps)
    paths = arguments.data or (find_pairs(None) if objective == "reward" else CONVERSATIONS)
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise BenchmarkError(f"{missing[0]} is not there; name files with --data")
    settings = {
        "directory": str(workspace),
        "objective": objective,
        "model": arguments.model,
        "paths": [str(path) for path in paths],
        "max_length": arguments.max_length,
        "num_rows": needed,
        "batch_pairs": BATCH,
    }
    made = run_worker(WORKERS / "family_prepare.py", settings, workspace=workspace)
    if made["usable"] < needed:
        raise BenchmarkError(f"{made['usable']} examples up to {arguments.max_length} tokens, {needed} are needed")
    bench = Bench(arguments, objective, workspace, known)
    facts[f"Gate ({TITLES[objective]})"] = check_gate(bench)
    print(facts[f"Gate ({TITLES[objective]})"], flush=True)
    results = measure(bench)
    facts[f"Versions ({TITLES[objective]})"] = versions(results)
    names = ", ".join(path.name for path in paths)
    return f"## {TITLES[objective]}\n\n{needed} of {made['usable']} examples of {names}.\n\n{table(results, known)}"


def benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Both objectives, and the page."""
    facts = describe_run()
    sections: Sequence[str] = [
        compare(arguments, objective, workspace / objective, facts) for objective in arguments.objective
    ]
    body = "\n\n".join(sections)
    print(f"\n{body}\n")
    facts["Settings"] = (
        f"{BATCH} examples a step, all weights, AdamW, fp32 weights, bf16 compute; {arguments.rounds} rounds of "
        f"{arguments.warmup} + {arguments.steps} steps, the first {arguments.warmup} not timed; medians of the rounds"
    )
    facts["Columns"] = (
        "tokens are those of the examples, padding left out, of a pair both rows; above states: the peak less 16 "
        "bytes a parameter (weights, gradients, optimizer states)"
    )
    if arguments.output:
        title = " and ".join(TITLES[objective] for objective in arguments.objective)
        write_result(arguments.output, f"Training step: {title}, {arguments.model}", facts, body)
        print(f"written to {arguments.output}")


def main() -> int:
    """Run; a failure is one message and status 2."""
    return run_main(partial(benchmark, parse_arguments()), name="family", needs={"trl": "1.16"})


if __name__ == "__main__":
    sys.exit(main())
