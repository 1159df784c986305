"""Whole curation runs: pairs a second with and without near-duplicates, with one and two workers, here and on a Ray
cluster of this machine (`--ray`), and the memory of a million pairs.

Real pairs are told again with other first words, so that none is a duplicate by its key. The million short pairs are
made of sentences of the real ones. Results: `results/curate_scale.md`.
"""

import argparse
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from curate import write_pairs
from harness import (
    RESULTS,
    WORKERS,
    BenchmarkError,
    describe_run,
    find_pairs,
    installed,
    markdown_table,
    run_main,
    run_worker,
    write_result,
)

COPIES = 36  # of each pair in each of two files: 28,800 pairs, so that the start of workers weighs little
NEAR = ("prompt", "prompt_chosen", "pair")
_SENTENCES = re.compile(r"[^。！？!?.\n]{12,80}[。！？!?.]")


@dataclass(frozen=True)
class Case:
    """What a run does and who does it. `near` None: exact duplicates are not looked for either."""

    name: str
    workers: int
    near: tuple[str, ...] | None = NEAR
    rules: bool = True
    ray: bool = False


def main() -> int:
    """Measure, print the table, write the page unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="*", type=Path, help="preference pairs; ../shared/data when left out")
    parser.add_argument("--quick", action="store_true", help="few rows, one repeat, no result page")
    parser.add_argument("--million", action="store_true", help="the million pairs too (half an hour on two cores)")
    parser.add_argument("--ray", action="store_true", help='on Ray too (pip install "hanlin[curate,cluster]")')
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    return run_main(lambda workspace: benchmark(workspace, given), name="curate-scale", needs={})


def benchmark(workspace: Path, given: argparse.Namespace) -> None:
    if given.ray and not installed("ray"):
        raise BenchmarkError('ray is not installed; pip install "hanlin[curate,cluster]"')
    pairs = find_pairs(given.pairs)
    copies = 1 if given.quick else COPIES
    real = [
        write_pairs(workspace / f"rows-{place}.jsonl", pairs, copies=copies, first=place * copies) for place in range(2)
    ]
    repeats = 1 if given.quick else given.repeats
    whole, alone = "rules, near-duplicates by three keys", "near-duplicates by three keys alone"
    cases = [Case("rules", 1, near=None), Case("rules", 2, near=None), Case(whole, 1), Case(whole, 2)]
    cases += [Case(alone, 1, rules=False), Case(alone, 2, rules=False)]
    if given.ray:
        cases += [Case(f"{whole}, on Ray", workers, ray=True) for workers in (1, 2)]
    rows = []
    for case in cases:
        rows.append(line(case, [one_run(workspace, real, case) for _ in range(repeats)]))
        print(rows[-1], flush=True)
    if given.million or given.quick:
        count = 20_000 if given.quick else 1_000_000
        files = [write_million(workspace / "million.jsonl", pairs, count)]
        case = Case(f"{count:,} short pairs, {whole}", 2)
        rows.append(line(case, [one_run(workspace, files, case)]))
    header = ("run", "workers", "pairs", "seconds", "to start Ray", "pairs/s", "MB together", "MB largest")
    table = markdown_table(header, rows)
    print(table)
    if not given.quick:
        write_result(RESULTS / "curate_scale.md", "Whole curation runs", describe_run(), table)


def line(case: Case, made: Sequence[dict[str, Any]]) -> list[str]:
    count = made[0]["rows"]
    seconds, start = (median(one[name] for one in made) for name in ("seconds", "start"))
    sizes = [f"{max(one[size] for one in made) / 1e6:,.0f}" for size in ("together", "largest")]
    times = [f"{seconds:.1f}", f"{start:.1f}" if case.ray else "–", f"{count / seconds:,.0f}"]
    return [case.name, str(case.workers), f"{count:,}", *times, *sizes]


def one_run(workspace: Path, files: Sequence[Path], case: Case) -> dict[str, Any]:
    """One run of a recipe into a folder of its own, removed at the end."""
    number = len(list(workspace.glob("*.settings.json")))
    recipe: dict[str, Any] = {
        "input": {"files": [str(file) for file in files]},
        "output": {"directory": str(workspace / f"out-{number}")},
        "duplicates": {"exact": case.near is not None, "near": case.near or []},
        "run": {"workers": case.workers},
    }
    if not case.rules:
        recipe["curation"] = {"pair": dict.fromkeys(("equal", "gap", "both", "worse"), "keep")}
        recipe["curation"] |= {side: dict.fromkeys(_RULES, "keep") for side in ("prompt", "chosen", "rejected")}
    settings = {"recipe": json.dumps(recipe), "ray": case.ray}
    made = run_worker(WORKERS / "curate_run.py", settings, workspace=workspace)
    shutil.rmtree(workspace / f"out-{number}")
    return made


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
