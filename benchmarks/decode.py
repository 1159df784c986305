"""Cached decoding of Hanlin and of transformers' `generate`: tokens a second, CPU time, memory.

SmolLM2-135M in bf16 on the CPU, greedy, the same prompts and the same number of new tokens, reading the prompts
included. Three workloads: one request, eight alike, eight uneven ones. Each system runs in a process of its own, in
turn, for some rounds; the first run of each process is not counted. A busy machine can only slow a run down, so the
fastest run of each system is compared; the median CPU time stands beside it. `--quick` shows that all of it works.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
SYSTEMS = {"hanlin": "decode_hanlin.py", "transformers": "decode_transformers.py"}
# (tokens of the prompt, tokens of the answer) of each request
WORKLOADS = {
    "1 request": [(64, 128)],
    "8 requests": [(64, 128)] * 8,
    "8 uneven requests": [(12, 200), (300, 24), (40, 64), (160, 16), (24, 96), (80, 48), (200, 32), (56, 128)],
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
PACKAGES = ("torch", "transformers")


def parse_arguments() -> argparse.Namespace:
    """The command line, `--quick` applied."""
    parser = argparse.ArgumentParser(description="Cached decoding: Hanlin against transformers.generate.")
    parser.add_argument("--model", type=Path, default=ROOT / ".assets" / "smollm2-135m-instruct.gguf")
    parser.add_argument("--rounds", type=int, default=3, help="times that each system runs")
    parser.add_argument("--repeats", type=int, default=3, help="counted runs of each workload in a round")
    parser.add_argument("--threads", type=int, help="of torch, in both systems (default: torch's own choice)")
    parser.add_argument("--output", type=Path, help=f"result page (default: {RESULTS.relative_to(ROOT)}/decode.md)")
    parser.add_argument("--quick", action="store_true", help="one round, one run; no result page")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = arguments.repeats = 1
    elif arguments.output is None:
        arguments.output = RESULTS / "decode.md"
    if min(arguments.rounds, arguments.repeats) < 1:
        parser.error("--rounds and --repeats must be at least 1")
    if not arguments.model.exists():
        parser.error(f"{arguments.model} does not exist; run `make assets` or name a model with --model")
    return arguments


def prepare(arguments: argparse.Namespace, workspace: Path) -> dict[str, Any]:
    """The settings of every run: the model's directory, prompts and lengths of each workload."""
    needed = max(length for requests in WORKLOADS.values() for length, _ in requests) + 100
    settings = {"model": str(arguments.model), "directory": str(workspace), "num_ids": needed}
    ids = run_worker(WORKERS / "decode_prepare.py", settings, workspace=workspace)["ids"]
    workloads = {
        name: {
            "prompts": [ids[start : start + length] for start, (length, _) in enumerate(requests)],
            "numbers": [number for _, number in requests],
        }
        for name, requests in WORKLOADS.items()
    }
    return {
        "model": str(workspace / "model"),
        "workloads": workloads,
        "warmup": 1,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
    }


def measure(settings: Mapping[str, Any], rounds: int, workspace: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of each system, round by round, in turn."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for number in range(1, rounds + 1):
        for name, script in SYSTEMS.items():
            result = run_worker(WORKERS / script, settings, workspace=workspace, environment=ENVIRONMENT)
            results[name].append(result)
            speeds = (f"{workload}: {rate(found, workload):.0f}" for workload, found in result["workloads"].items())
            print(f"round {number}  {name:12}  {', '.join(speeds)} tokens/s", flush=True)
    return results


def rate(found: Mapping[str, Any], workload: str) -> float:
    """Wanted tokens a second of the fastest run."""
    return sum(number for _, number in WORKLOADS[workload]) / min(found["seconds"])


def tables(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Speed and CPU time of each workload, then the memory of each process."""
    rows = []
    for workload, requests in WORKLOADS.items():
        number = sum(count for _, count in requests)
        runs = {name: [one["workloads"][workload] for one in found] for name, found in results.items()}
        speed = {name: max(rate(one, workload) for one in found) for name, found in runs.items()}
        cpu = {
            name: statistics.median(second for one in found for second in one["cpu_seconds"]) / number
            for name, found in runs.items()
        }
        rows.append(
            [
                workload,
                *(f"{speed[name]:.1f}" for name in SYSTEMS),
                f"{speed['hanlin'] / speed['transformers']:.2f}x",
                *(f"{1000 * cpu[name]:.1f}" for name in SYSTEMS),
                f"{cpu['transformers'] / cpu['hanlin']:.2f}x",
            ]
        )
    header = ["", *(f"{name} tokens/s" for name in SYSTEMS), "speed"]
    header += [*(f"{name} CPU ms/token" for name in SYSTEMS), "CPU time"]
    peaks = [[name, f"{max(one['peak_bytes'] for one in found) / 1e9:.2f}"] for name, found in results.items()]
    return f"{markdown_table(header, rows)}\n\n{markdown_table(['', 'peak GB of the process'], peaks)}"


def agreement(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How far the greedy answers are alike: bf16 rounds differently, so they part where two tokens are nearly tied."""
    same = total = 0
    for workload, found in results["hanlin"][0]["workloads"].items():
        theirs = results["transformers"][0]["workloads"][workload]["ids"]
        for mine, other in zip(found["ids"], theirs, strict=True):
            same += next((at for at, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
            total += len(mine)
    return f"{same} of {total} tokens come before the first difference of their answer"


def run_benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Prepare, measure, print, and write the result page."""
    facts = describe_run(PACKAGES)
    settings = prepare(arguments, workspace)
    results = measure(settings, arguments.rounds, workspace)
    facts["Uneven requests"] = ", ".join(f"{p} + {n}" for p, n in WORKLOADS["8 uneven requests"]) + " tokens"
    facts["Settings"] = (
        f"{arguments.model.name} in bf16, greedy, {results['hanlin'][0]['threads']} threads; {arguments.rounds} "
        f"rounds of 1 + {arguments.repeats} runs, the first not counted; fastest run, median CPU time; "
        "only wanted tokens count"
    )
    facts["Answers"] = agreement(results)
    body = tables(results)
    print(f"\n{body}\n{facts['Answers']}")
    if arguments.output:
        write_result(arguments.output, "Cached decoding, SmolLM2-135M", facts, body)
        print(f"\nwritten to {arguments.output}")


def main() -> int:
    """Run; a failure is one message and status 2."""
    arguments = parse_arguments()
    try:
        require_package("transformers", release="5")
        with tempfile.TemporaryDirectory(prefix="hanlin-decode-") as workspace:
            run_benchmark(arguments, Path(workspace))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
