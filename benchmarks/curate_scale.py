"""Whole curation runs: pairs a second with and without near-duplicates, with one and two workers and the
memory of a million pairs.

Real pairs are told again with other first words, so that none is a duplicate by its key. The million short pairs are
made of sentences of the real ones. Results: `results/curate_scale.md`.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from curate import write_pairs
from harness import (
    RESULTS,
    WORKERS,
    describe_run,
    find_pairs,
    markdown_table,
    run_main,
    run_worker,
    write_result,
)

_SENTENCES = re.compile(r"[^。！？!?.\n]{12,80}[。！？!?.]")


def main() -> int:
    """Measure, print the table, write the page unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="*", type=Path, help="preference pairs; ../shared/data when left out")
    parser.add_argument("--quick", action="store_true", help="few rows, one repeat, no result page")
    parser.add_argument("--million", action="store_true", help="the million pairs too (half an hour on two cores)")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    return run_main(lambda workspace: benchmark(workspace, given), name="curate-scale", needs={})


def benchmark(workspace: Path, given: argparse.Namespace) -> None:
    pairs = find_pairs(given.pairs)
    real = [
        write_pairs(workspace / f"rows-{place}.jsonl", pairs, copies=1 if given.quick else 6, first=place * 6)
        for place in range(2)
    ]
    repeats = 1 if given.quick else given.repeats
    near = ["prompt", "prompt_chosen", "pair"]
    rows = []
    for name, workers, keys in (
        ("rules", 1, None),
        ("rules", 2, None),
        ("rules, near-duplicates by three keys", 2, near),
        ("near-duplicates by three keys alone", 2, near),
    ):
        alone = name.endswith("alone")
        made = [one_run(workspace, real, workers=workers, near=keys, rules=not alone) for _ in range(repeats)]
        rows.append(line(name, workers, made))
        print(rows[-1], flush=True)
    if given.million or given.quick:
        count = 20_000 if given.quick else 1_000_000
        files = [write_million(workspace / "million.jsonl", pairs, count)]
        made = [one_run(workspace, files, workers=2, near=near, rules=True)]
        rows.append(line(f"{count:,} short pairs, rules and near-duplicates", 2, made))
    table = markdown_table(("run", "workers", "pairs", "seconds", "pairs/s", "MB together", "MB largest"), rows)
    print(table)
    if not given.quick:
        write_result(RESULTS / "curate_scale.md", "Whole curation runs", describe_run(), table)


def line(name: str, workers: int, made: Sequence[dict[str, Any]]) -> list[str]:
    seconds = median(one["seconds"] for one in made)
    together, largest = (max(one[size] for one in made) / 1e6 for size in ("together", "largest"))
    rate = f"{made[0]['rows'] / seconds:,.0f}"
    return [name, str(workers), f"{made[0]['rows']:,}", f"{seconds:.1f}", rate, f"{together:,.0f}", f"{largest:,.0f}"]


def one_run(
    workspace: Path, files: Sequence[Path], *, workers: int, near: list[str] | None, rules: bool
) -> dict[str, Any]:
    """One run of a recipe into a folder of its own."""
    number = len(list(workspace.glob("out-*")))
    recipe: dict[str, Any] = {
        "input": {"files": [str(file) for file in files]},
        "output": {"directory": str(workspace / f"out-{number}")},
        "duplicates": {"exact": near is not None, "near": near or []},
        "run": {"workers": workers, "chunk_bytes": 1_000_000},
    }
    if not rules:
        recipe["curation"] = {"pair": dict.fromkeys(("equal", "gap", "both", "worse"), "keep")}
        recipe["curation"] |= {side: dict.fromkeys(_RULES, "keep") for side in ("prompt", "chosen", "rejected")}
    settings = {"recipe": json.dumps(recipe)}
    return run_worker(WORKERS / "curate_run.py", settings, workspace=workspace)


_RULES = ("personal", "identity", "toxic", "lexicon", "language", "mixed", "emoji", "script", "length", "repetition")
_RULES += ("ending", "garbled", "refusal", "markup", "document")


def write_million(path: Path, files: Sequence[Path], count: int) -> Path:
    """Pairs of two to five sentences a side, drawn by chance from the real ones."""
    draw = random.Random(0)
    told = "\n".join(file.read_text(encoding="utf-8") for file in files)
    found = _SENTENCES.findall(told.replace("\\n", "\n"))
    sentences = sorted({sentence.strip() for sentence in found if '"' not in sentence and "\\" not in sentence})

    def side(number: int) -> str:
        return " ".join(draw.choice(sentences) for _ in range(number))

    def rows() -> Iterator[str]:
        number = 0
        while True:
            row = {"id": number, "prompt": side(2), "chosen": side(draw.randint(3, 5)), "rejected": side(3)}
            yield json.dumps(row, ensure_ascii=False) + "\n"
            number += 1

    with path.open("w", encoding="utf-8") as file:
        file.writelines(islice(rows(), count))
    return path


if __name__ == "__main__":
    sys.exit(main())
