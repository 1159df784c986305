"""Does RLHF work on a CPU? From an SFT start, how Chinese are answers to 64 held-out Chinese questions, step by step?

The start is SmolLM2 135M, an English chat model, after a short SFT on English instructions and a few Chinese ones
(../shared/data). RLHF is `recipes/rlhf-smollm2.toml` as it is, on the Chinese prompts that Hanlin ships; the 64 are the
first Chinese ones of the shipped held-out file, which no stage learns from. The reward is the built-in "chinese": the
share of Han characters in all that is in a language. Every held-out question gets one sampled answer, with the same
seeds each time. `--start` takes a model instead of the SFT; `--quick` shows that all of it works.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, BenchmarkError, describe_run, markdown_table, run_main, write_result

INSTRUCTIONS = ROOT.parent / "shared" / "data"
PROMPTS, HELD_OUT = (ROOT / "data" / f"starter-zh-en{end}.jsonl" for end in ("", ".heldout"))
NUM_HELD_OUT = 64
# Instructions of the SFT start: nearly all English, so that there is something left to learn; short answers.
START = {"alpaca_zh_500.json": (20, 220), "alpaca_en_500.json": (300, 500)}
START_SETTINGS = ("training.steps=16", "training.batch_pairs=6", "data.max_length=256", "data.held_out_pairs=2")


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, `--quick` applied."""
    parser = argparse.ArgumentParser(description="RLHF from an SFT start on a CPU.")
    parser.add_argument("--model", default="smollm2", help="what the SFT start is made of")
    parser.add_argument("--start", help="a model to start from, instead of the SFT")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the RLHF recipe")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; a start that it holds is used again")
    parser.add_argument("--output", type=Path, help=f"result page (default: {RESULTS.relative_to(ROOT)}/rlhf.md)")
    parser.add_argument("--quick", action="store_true", help="two steps from the plain model; no result page")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.start = arguments.start or arguments.model
        arguments.set += ["training.steps=2", "training.batch_pairs=2", "objective.max_tokens=8"]
    elif arguments.output is None:
        arguments.output = RESULTS / "rlhf.md"
    return arguments


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chinese_prompts(path: Path) -> list[dict[str, Any]]:
    """The Chinese rows of a shipped file, their questions alone."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"id": row["id"], "prompt": row["prompt"]} for row in rows if row["language"] == "zh"]


def instructions() -> list[dict[str, Any]]:
    """What the SFT start learns from."""
    chosen: list[dict[str, Any]] = []
    for name, (number, longest) in START.items():
        if not (INSTRUCTIONS / name).exists():
            raise BenchmarkError(f"{INSTRUCTIONS / name} is not there; name an SFT model with --start")
        rows = json.loads((INSTRUCTIONS / name).read_text(encoding="utf-8"))
        chosen += [row for row in rows if len(row["output"]) <= longest][:number]
    return chosen


def train(recipe: str, directory: Path, overrides: Sequence[str]) -> float:
    """Run a recipe in a process of its own; the seconds that it took."""
    sets = [word for one in [*overrides, f"output.directory={directory}"] for word in ("--set", one)]
    command = [sys.executable, "-m", "hanlin.cli", "train", str(ROOT / "recipes" / recipe), *sets]
    began = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
        raise BenchmarkError(f"{' '.join(command)} failed; its message stands above")
    return time.perf_counter() - began


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """What was held out at every evaluation, and the step's own numbers there."""
    steps = {record["step"]: record for record in records if "reward" in record}
    header = ["step", "held-out reward", "its tokens", "its cut answers", "KL, nats an answer", "generation share"]
    rows = []
    for record in records:
        if "eval_reward" in record:
            own = steps.get(record["step"], {})
            shown = (
                f"{record['eval_reward']:.3f}",
                f"{record['eval_completions/mean_length']:.1f}",
                f"{record['eval_completions/clipped_ratio']:.0%}",
                f"{own['objective/kl']:.2f}" if own else "0",
                f"{own['generation_share']:.0%}" if own else "–",
            )
            rows.append([str(record["step"]), *shown])
    return markdown_table(header, rows)


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Four curves over the steps: rewards, KL, length, share of generation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        (
            "reward: share of Han characters",
            ("reward", "this step's answers"),
            ("eval_reward", "64 held-out questions"),
        ),
        ("KL from the start, nats an answer", ("objective/kl", "this step's answers"), None),
        (
            "tokens of an answer",
            ("completions/mean_length", "this step's answers"),
            ("eval_completions/mean_length", "64 held-out questions"),
        ),
        ("share of a step's time spent generating", ("generation_share", "this step"), None),
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (title, trained, held_out) in zip(axes.flat, panels, strict=True):
        for curve, style in ((trained, "-"), (held_out, "o--")):
            if curve is not None:
                found = [(record["step"], record[curve[0]]) for record in records if curve[0] in record]
                axis.plot(*zip(*found, strict=True), style, label=curve[1])
        axis.set(title=title, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run_benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Make the start, run RLHF, write the page and its picture."""
    facts = describe_run()
    place = (arguments.keep or workspace).resolve()
    place.mkdir(parents=True, exist_ok=True)
    held_out = chinese_prompts(HELD_OUT)[: 4 if arguments.quick else NUM_HELD_OUT]
    data = {
        "train": write_lines(place / "prompts.jsonl", chinese_prompts(PROMPTS)),
        "held_out": write_lines(place / "held-out.jsonl", held_out),
    }
    start = arguments.start
    if start is None:
        start = str(place / "start")
        learnt = write_lines(place / "instructions.jsonl", instructions())
        if not (place / "start" / "config.json").exists():
            own = [f"model.path={arguments.model}", f'data.train=["{learnt}"]', *START_SETTINGS]
            train("sft-smollm2.toml", place / "start", own)
    files = [f'data.{name}=["{path}"]' for name, path in data.items()]
    run = place / f"rlhf-{int(time.time())}"
    seconds = train("rlhf-smollm2.toml", run, [f"model.path={start}", *files, *arguments.set])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rewards = [record["eval_reward"] for record in records if "eval_reward" in record]
    shares = [record["generation_share"] for record in records if "generation_share" in record]
    said = (
        f"Reward of {len(held_out)} held-out questions: {rewards[0]:.3f} → {rewards[-1]:.3f} "
        f"({rewards[-1] - rewards[0]:+.3f}) in {seconds / 60:.1f} minutes, start-up, evaluations and saving included. "
        f"Sampling took {sum(shares) / len(shares):.0%} of a step on average."
    )
    print(f"\n{said}\n\n{table(records)}")
    if arguments.output:
        picture = arguments.output.with_suffix(".png")
        plot(records, picture)
        made = f"{arguments.model} after SFT on {', '.join(f'{n} of {name}' for name, (n, _) in START.items())}"
        facts["Start"] = arguments.start or made
        facts["Settings"] = "recipes/rlhf-smollm2.toml" + "".join(f", {one}" for one in arguments.set)
        body = f"{said}\n\n{table(records)}\n\n![Reward, KL, length and generation]({picture.name})"
        write_result(arguments.output, "RLHF on a CPU", facts, body)
        print(f"\nwritten to {arguments.output} and {picture}")


def main() -> int:
    """Run; a failure is one message and status 2."""
    return run_main(partial(run_benchmark, parse_arguments()), name="rlhf", needs={})


if __name__ == "__main__":
    sys.exit(main())
