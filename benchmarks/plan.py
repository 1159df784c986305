"""What `hanlin train --dry-run` predicts, beside what the run then takes: peak memory and time of a step.

Every setting is a recipe on SmolLM2-135M and real data, run for a few steps in a process of its own: it loads, trains
and saves. Memory is the most that the process held; it must be within 15% of the plan. The time is that of the fastest
step after the first; the calibration is of the same process, a moment before. `--quick` runs one setting.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    ROOT,
    WORKERS,
    BenchmarkError,
    describe_run,
    installed,
    markdown_table,
    run_main,
    run_worker,
    write_result,
)

DATA = ROOT.parent / "shared" / "data"
MODEL = ROOT / ".assets" / "smollm2-135m-instruct.gguf"
PAIRS = [str(DATA / name) for name in ("dpo_zh_200.json", "dpo_en_200.json")]
TALKS = [str(DATA / name) for name in ("alpaca_zh_500.json", "alpaca_en_500.json")]
TEXTS = [str(DATA / "c4_demo.jsonl")]
WITHIN = 0.15
Changes = dict[str, dict[str, Any]]
_LORA = {"rank": 16}


def _setting(kind: str = "orpo", *, tokens: int = 1024, batch: int = 3, **more: Mapping[str, Any]) -> Changes:
    """The sections of a recipe: what all settings share, then this one's own."""
    own = {"train": TALKS if kind in ("sft", "rlhf") else TEXTS if kind == "pretraining" else PAIRS}
    sections: Changes = {
        "model": {"path": str(MODEL)},
        "data": {"max_length": 512, "on_bad_row": "skip", "cache": False, **own},
        "objective": {"kind": kind},
        "training": {"batch_pairs": batch, "tokens_per_pass": tokens, "device": "cpu"},
    }
    for section, values in more.items():
        sections.setdefault(section, {}).update(values)
    return sections


SETTINGS: dict[str, Changes] = {
    "ORPO, 1,024 tokens a pass": _setting(),
    "ORPO, 4,096 tokens a pass": _setting(tokens=4096, batch=8),
    "SFT, 2,048 tokens a pass": _setting("sft", tokens=2048, batch=10),
    "pre-training, 2,048 tokens a pass": _setting("pretraining", tokens=2048, batch=4),
    "DPO": _setting("dpo"),
    "SimPO": _setting("simpo"),
    "reward model": _setting("reward"),
    "RLHF, 4 prompts x 4 answers of 48 tokens": _setting(
        "rlhf", objective={"rewards": ["chinese"], "answers": 4, "max_tokens": 48, "cut_limit": 1.0}
    ),
    "ORPO, LoRA": _setting(lora=_LORA),
    "ORPO, LoRA on bf16 weights": _setting(lora=_LORA, model={"dtype": "bfloat16"}),
    "ORPO, QLoRA": _setting(lora=_LORA, model={"dtype": "bfloat16", "quantization": "nf4"}),
    "DPO, LoRA, 2,048 tokens a pass": _setting("dpo", lora=_LORA, tokens=2048, batch=4),
    "ORPO, bf16 weights, adamw_bf16": _setting(model={"dtype": "bfloat16"}, training={"optimizer": "adamw_bf16"}),
    "ORPO, fp32 compute": _setting(model={"compute": "float32"}),
    "ORPO, 15 of 30 layers frozen": _setting(training={"frozen_layers": 15}),
    "ORPO, step in backward": _setting(batch=2, tokens=2048, training={"step_in_backward": True, "clip": 0}),
    "ORPO, every layer computed twice, lean head": _setting(
        tokens=4096, batch=8, training={"recomputed_layers": 30, "head": "lean"}
    ),
}


def write_recipe(sections: Changes, path: Path) -> None:
    """JSON's numbers, strings, lists and booleans are TOML too."""
    parts = [
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for section, values in sections.items()
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _some(pairs: str, path: Path) -> Path:
    """A file with the first pairs of another."""
    path.write_text(json.dumps(json.loads(Path(pairs).read_text(encoding="utf-8"))[:24]), encoding="utf-8")
    return path


def measure(name: str, workspace: Path, *, steps: int = 3) -> dict[str, Any]:
    """Plan and run of one setting. Raises BenchmarkError where the model or the data is missing, or the run fails."""
    for needed in (MODEL, DATA):
        if not needed.exists():
            raise BenchmarkError(f"{needed} is missing; `make assets` fetches the model")
    recipe = workspace / f"{list(SETTINGS).index(name)}.toml"
    sections = {section: dict(values) for section, values in SETTINGS[name].items()}
    sections["training"]["steps"] = steps
    if sections["objective"]["kind"] == "dpo":  # its reference is computed for all pairs
        sections["data"]["train"] = [str(_some(PAIRS[1], workspace / "some.json"))]
    write_recipe(sections, recipe)
    settings = {"recipe": str(recipe), "directory": str(workspace / f"run-{recipe.stem}")}
    return run_worker(WORKERS / "plan_hanlin.py", settings, workspace=workspace)


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    planned, taken = found["planned_bytes"], found["peak_bytes"]
    seconds = min(wall * (1 - share) for wall, share in zip(found["seconds"], found["sampling"], strict=True))
    expected = found["planned_seconds"]
    return [
        name,
        f"{planned / 1e9:.2f}",
        f"{taken / 1e9:.2f}",
        f"{planned / taken:.2f}",
        f"{expected:.1f}",
        f"{seconds:.1f}",
        f"{expected / seconds:.2f}",
    ]


def run_benchmark(arguments: argparse.Namespace, workspace: Path) -> None:
    """Measure, print, and write the result page."""
    facts, rows, parts = describe_run(), [], []
    results: dict[str, Any] = {}
    for name in arguments.settings or SETTINGS:
        if "QLoRA" in name and installed("bitsandbytes") is None:
            print(f"{name}: not run, bitsandbytes is not installed")
            continue
        results[name] = found = measure(name, workspace, steps=arguments.steps)
        rows.append(row(name, found))
        shares = (f"{part} {size / 1e9:.2f}" for part, size in found["parts"].items())
        parts.append(f"- {name}: {', '.join(shares)}")
        print(" | ".join(rows[-1]), parts[-1], f"(trained {found['trained_bytes'] / 1e9:.2f})", flush=True)
    if arguments.raw:
        arguments.raw.write_text(json.dumps(results, indent=1), encoding="utf-8")
    title = ["setting", "planned, GB", "measured, GB", "ratio", "a step planned, s", "measured, s", "ratio"]
    off = [line[0] for line in rows if abs(float(line[3]) - 1) > WITHIN]
    verdict = f"Beyond {WITHIN:.0%} of the measured peak: {', '.join(off) or 'none'}."
    facts["Settings"] = (
        "SmolLM2-135M-Instruct; real pairs, conversations and documents of up to 512 tokens; "
        f"{arguments.steps} steps, the first is a warm-up; GB are 1e9 bytes of resident memory from start to saved "
        "model; a step's time is without sampling"
    )
    facts["Versions"] = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    body = f"{markdown_table(title, rows)}\n\n{verdict}\n\n## What the plan says is there at the peak, GB\n\n"
    body += "\n".join(parts)
    if arguments.output:
        write_result(arguments.output, "The plan against the run", facts, body)
        print(f"\n{verdict} Written to {arguments.output}")


def main() -> int:
    """Run; a failure is one message and status 2."""
    parser = argparse.ArgumentParser(description="What a dry run predicts against what the run takes.")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help="some of the settings only")
    parser.add_argument("--steps", type=int, default=3, help="of each run; the first is a warm-up (default: 3)")
    parser.add_argument("--output", type=Path, help=f"result page (default: {RESULTS.relative_to(ROOT)}/plan.md)")
    parser.add_argument("--raw", type=Path, help="write all numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one setting; no result page")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.settings = ["ORPO, LoRA on bf16 weights"]
    elif arguments.output is None and not arguments.settings:
        arguments.output = RESULTS / "plan.md"
    return run_main(partial(run_benchmark, arguments), name="plan", needs={})


if __name__ == "__main__":
    sys.exit(main())
