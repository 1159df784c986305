"""ORPO training steps of Hanlin and of TRL's ORPOTrainer on the same pairs: speed, CPU time, memory.

SmolLM2-135M, real pairs, the same list in the same order, the same objective (preset `trl`), AdamW, 8 pairs a step, on
the CPU. TRL runs at its literal defaults and at the setting that is its fastest here. A gate comes first: in fp32, loss
and gradient norm of a step must agree. Then each system runs in a process of its own, in turn, for some rounds; only
whole training steps after the warm-up are timed. `--quick` shows in minutes that all of it works; its numbers mean
nothing.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    ROOT,
    BenchmarkError,
    describe_run,
    markdown_table,
    require_package,
    run_worker,
    write_result,
)

WORKERS = Path(__file__).parent / "workers"
BATCH_PAIRS = 8
TOLERANCE = 1e-4  # of the gate, relative; transformers in fp32 is about 1e-5 from fp64
SHARED = [ROOT.parent / "shared" / "data" / name for name in ("dpo_zh_200.json", "dpo_en_200.json")]
SHIPPED = [ROOT / "data" / "starter-zh-en.jsonl"]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


@dataclass(frozen=True, slots=True)
class System:
    """One thing to measure: its name in the table, what is special about it, its worker and its settings."""

    name: str
    about: str
    worker: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """The prepared files and what is in them. `tokens` are the logical tokens (2 P + C + R) of each pair, in order."""

    directory: Path
    tokens: Sequence[int]
    about: str


@dataclass(frozen=True, slots=True)
class Score:
    """What one system reached: rates of each round, and per counted step the CPU seconds; the peak of all rounds."""

    pairs_per_second: list[float]
    tokens_per_second: float
    cpu_seconds: float
    peak_bytes: float
    loss: float

    @property
    def speed(self) -> float:
        """Pairs a second, the median of the rounds."""
        return statistics.median(self.pairs_per_second)


def systems(tokens_per_pass: int) -> dict[str, System]:
    """What is compared, by name; TRL's two settings are those of issue 2."""
    return {
        "hanlin": System(
            "hanlin",
            f"fp32 weights, bf16 compute, `tokens_per_pass = {tokens_per_pass}`",
            "orpo_hanlin.py",
            {"tokens_per_pass": tokens_per_pass},
        ),
        "trl": System(
            "TRL, defaults",
            "bf16 autocast, batch 8, gradient checkpointing",
            "orpo_trl.py",
            {"micro_batch": BATCH_PAIRS, "checkpointing": True},
        ),
        "trl-fast": System(
            "TRL, fastest",
            "bf16 autocast, batch 1 x 8 accumulated, no checkpointing",
            "orpo_trl.py",
            {"micro_batch": 1, "checkpointing": False},
        ),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line, `--quick` applied."""
    parser = argparse.ArgumentParser(description="ORPO training steps: Hanlin against TRL's ORPOTrainer.")
    names = list(systems(0))
    parser.add_argument("--pairs", nargs="+", type=Path, help="preference files (default: ../shared/data, or ours)")
    parser.add_argument("--model", default="smollm2", help="a model by any name that Hanlin takes")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and longer answer")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of 8 pairs")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="times that each system runs")
    parser.add_argument("--tokens-per-pass", type=int, default=2048, help="Hanlin's budget for one pass")
    parser.add_argument("--threads", type=int, help="of torch, in every system (default: torch's own choice)")
    parser.add_argument("--systems", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--no-gate", action="store_true", help="do not compare loss and gradient norm first")
    parser.add_argument("--output", type=Path, help=f"result page (default: {RESULTS.relative_to(ROOT)}/orpo_step.md)")
    parser.add_argument("--quick", action="store_true", help="one round, one step, short pairs; no result page")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps, arguments.warmup, arguments.max_length = 1, 1, 1, 256
    elif arguments.output is None:
        arguments.output = RESULTS / "orpo_step.md"
    if min(arguments.rounds, arguments.steps) < 1 or arguments.warmup < 0:
        parser.error("--rounds and --steps must be at least 1, --warmup at least 0")
    return arguments


def find_pairs(given: Sequence[Path] | None) -> list[Path]:
    """The preference files: those given, else the shared ones beside the checkout, else the shipped ones."""
    if given:
        missing = [path for path in given if not path.exists()]
        if missing:
            raise BenchmarkError(f"{missing[0]} does not exist; give --pairs a file of preference pairs")
        return list(given)
    for paths in (SHARED, SHIPPED):
        if all(path.exists() for path in paths):
            return paths
    raise BenchmarkError(f"neither {SHARED[0].parent} nor {SHIPPED[0]} is there; name a file with --pairs")


def prepare(arguments: argparse.Namespace, workspace: Path) -> Workload:
    """Write the model directory and the pairs, once for all systems."""
    paths = find_pairs(arguments.pairs)
    needed = BATCH_PAIRS * (arguments.warmup + arguments.steps)
    settings = {
        "directory": str(workspace),
        "model": arguments.model,
        "paths": [str(path) for path in paths],
        "max_length": arguments.max_length,
        "num_pairs": needed,
        "batch_pairs": BATCH_PAIRS,
    }
    made = run_worker(WORKERS / "orpo_prepare.py", settings, workspace=workspace)
    if len(made["tokens"]) < needed:
        raise BenchmarkError(
            f"{made['alike']} of {made['read']} pairs can be used, {needed} are needed; give more --pairs, a larger "
            "--max-length, or fewer --steps"
        )
    names = ", ".join(path.name for path in paths)
    left_out = made["fitting"] - made["alike"]
    sharing = sum(made["tokens"]) / made["stream_tokens"]
    about = (
        f"{needed} of {made['alike']} pairs up to {arguments.max_length} tokens from {names} "
        f"({made['read'] - made['fitting']} longer or without two different answers, {left_out} left out because "
        f"the tokenizer splits them differently as one text); "
        f"{sum(made['tokens']) / needed:.0f} real tokens a pair, sharing factor {sharing:.2f}"
    )
    return Workload(workspace, made["tokens"], about)


def run_system(system: System, arguments: argparse.Namespace, workload: Workload, **special: Any) -> dict[str, Any]:
    """One run of one system in a process of its own."""
    settings = {
        "model": str(workload.directory / "model"),
        "pairs": str(workload.directory / "pairs.json"),
        "batch_pairs": BATCH_PAIRS,
        "warmup": arguments.warmup,
        "threads": arguments.threads,
        "compute": "bfloat16",
        "learning_rate": 1e-6,
        "weight": 0.1,
        **system.settings,
        **special,
    }
    caches = {"HF_HOME": str(workload.directory / "cache")}
    return run_worker(
        WORKERS / system.worker, settings, workspace=workload.directory, environment={**ENVIRONMENT, **caches}
    )


def check_gate(arguments: argparse.Namespace, workload: Workload) -> str:
    """Compare one fp32 step of Hanlin and TRL on the 8 shortest pairs; the sentence to publish, or an error."""
    special = {"pairs": str(workload.directory / "gate.json"), "warmup": 0, "compute": "float32"}
    known = systems(arguments.tokens_per_pass)
    ours, theirs = (run_system(known[name], arguments, workload, **special) for name in ("hanlin", "trl"))
    parts, agree = [], True
    for name, words in (("loss", "loss"), ("grad_norm", "gradient norm")):
        difference = abs(ours[name] - theirs[name]) / abs(theirs[name])
        agree &= difference <= TOLERANCE
        parts.append(
            f"{words} {ours[name]:.6f} (hanlin), {theirs[name]:.6f} (TRL), relative difference {difference:.1e}"
        )
    said = f"one fp32 step on the {BATCH_PAIRS} shortest pairs: {'; '.join(parts)}"
    if not agree or ours["tokens"] != theirs["tokens"]:
        raise BenchmarkError(f"the systems do not compute the same: {said}")
    return said


def measure(arguments: argparse.Namespace, workload: Workload) -> dict[str, list[dict[str, Any]]]:
    """Every system once a round, in turn; prints each run."""
    known = systems(arguments.tokens_per_pass)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.systems}
    for number in range(1, arguments.rounds + 1):
        for name in arguments.systems:
            result = run_system(known[name], arguments, workload)
            if result["tokens"] != sum(workload.tokens):
                raise BenchmarkError(f"{name} trained on {result['tokens']} tokens, not {sum(workload.tokens)}")
            results[name].append(result)
            speed = BATCH_PAIRS * arguments.steps / sum(result["seconds"])
            print(
                f"round {number}  {known[name].name:14} {speed:.3f} pairs/s, {_cpu(result):.1f} CPU s a step, "
                f"{result['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    return results


def score(results: Sequence[Mapping[str, Any]], workload: Workload, *, warmup: int) -> Score:
    """The rounds of one system in one: medians, the largest peak."""
    counted = workload.tokens[warmup * BATCH_PAIRS :]
    seconds = [sum(result["seconds"]) for result in results]
    return Score(
        pairs_per_second=[len(counted) / value for value in seconds],
        tokens_per_second=sum(counted) / statistics.median(seconds),
        cpu_seconds=statistics.median(_cpu(result) for result in results),
        peak_bytes=max(result["peak_bytes"] for result in results),
        loss=results[0]["loss"],
    )


def tables(scores: Mapping[str, Score], tokens_per_pass: int) -> str:
    """What each system reached and, where Hanlin ran too, what it is compared with it."""
    known = systems(tokens_per_pass)
    rows = []
    for name, one in scores.items():
        spread = f"{min(one.pairs_per_second):.3f}-{max(one.pairs_per_second):.3f}"
        values = (f"{one.speed:.3f} ({spread})", f"{one.tokens_per_second:.0f}", f"{one.cpu_seconds:.1f}")
        rows.append([f"{known[name].name}: {known[name].about}", *values, _gb(one.peak_bytes), f"{one.loss:.4f}"])
    header = ["system", "pairs/s (range)", "real tokens/s", "CPU s/step", "peak GB", "mean loss"]
    text = markdown_table(header, rows)
    if "hanlin" not in scores or len(scores) == 1:
        return text
    ours = scores["hanlin"]
    ratios = [
        [
            known[name].name,
            f"{ours.speed / one.speed:.2f}x",
            f"{one.cpu_seconds / ours.cpu_seconds:.2f}x",
            f"{ours.peak_bytes / one.peak_bytes:.2f}x",
        ]
        for name, one in scores.items()
        if name != "hanlin"
    ]
    compared = [
        "hanlin compared with",
        "pairs/s, higher is better",
        "pairs/CPU s, higher is better",
        "peak, lower is better",
    ]
    return f"{text}\n\n{markdown_table(compared, ratios)}"


def matmul_share(results: Sequence[Mapping[str, Any]]) -> str:
    """How near Hanlin comes to the machine's bf16 matrix products: by wall clock and by CPU time, medians."""

    def shares(per: str, seconds: str) -> float:
        return statistics.median(one["flops"] / sum(one[seconds]) / one["matmul"][per] for one in results)

    rate = statistics.median(one["matmul"]["per_second"] for one in results) / 1e9
    return (
        f"{shares('per_second', 'seconds'):.0%} of a bf16 2048 x 2048 product's {rate:.0f} GFLOP/s on this machine "
        f"({shares('per_cpu_second', 'cpu_seconds'):.0%} by CPU time); operations counted once for a shared prompt"
    )


def run_benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Prepare, gate, measure, print, and write the result page."""
    facts = describe_run(PACKAGES)
    print("preparing the model and the pairs (the model is downloaded the first time)", flush=True)
    workload = prepare(arguments, workspace)
    print(workload.about, flush=True)
    facts["Pairs"] = workload.about
    if not arguments.no_gate:
        facts["Gate"] = check_gate(arguments, workload)
        print(f"gate: {facts['Gate']}", flush=True)
    results = measure(arguments, workload)
    scores = {name: score(found, workload, warmup=arguments.warmup) for name, found in results.items()}
    first = next(iter(results.values()))[0]
    facts["Settings"] = (
        f"{BATCH_PAIRS} pairs a step, AdamW, learning rate 1e-6 falling linearly, clipping at 1, fp32 weights, "
        f"{first['threads']} threads; {arguments.rounds} rounds of {arguments.warmup} + {arguments.steps} steps, the "
        f"first {arguments.warmup} not timed; medians of the rounds; peak: the process's largest resident memory, "
        "start-up included. Batch 1 x 8 averages the NLL of each pair, not of all tokens (TRL's way), so its loss is "
        "another number."
    )
    if "hanlin" in results:
        facts["Arithmetic"] = f"hanlin reaches {matmul_share(results['hanlin'])}"
        print(facts["Arithmetic"])
    body = tables(scores, arguments.tokens_per_pass)
    print(f"\n{body}")
    if arguments.output:
        write_result(arguments.output, f"ORPO training step, {arguments.model}", facts, body)
        print(f"\nwritten to {arguments.output}")


def _cpu(result: Mapping[str, Any]) -> float:
    """CPU seconds a step."""
    return statistics.mean(result["cpu_seconds"])


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}"


def main() -> int:
    """Run; a failure is one message and status 2."""
    arguments = parse_arguments()
    try:
        require_package("trl", release="1.16")
        with tempfile.TemporaryDirectory(prefix="hanlin-orpo-") as workspace:
            run_benchmark(arguments, Path(workspace))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
