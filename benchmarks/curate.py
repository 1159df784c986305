"""How many pairs a second curation takes: all rules, personal data beside Presidio, near-duplicates beside datasketch.

Each system runs on one core in a process of its own, on the same real pairs told again and again with other ids. The
peers are made on demand (`peers.py`). Results: `results/curate.md`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from harness import (
    RESULTS,
    WORKERS,
    describe_run,
    find_pairs,
    markdown_table,
    run_main,
    run_worker,
    versions,
    write_result,
)
from peers import place

from hanlin.data.sources import read_preferences

OURS = ("hanlin rules", "hanlin personal", "hanlin near")
PEERS = {"presidio": "hanlin personal", "datasketch": "hanlin near"}
ABOUT = {
    "hanlin rules": "all rules with the classifier, default recipe, no guard",
    "hanlin personal": "personal data, Chinese and English",
    "presidio": "seven pattern recognizers, no NLP engine",
    "hanlin near": "near-duplicates, three keys",
    "datasketch": "MinHash and LSH, three keys",
}


def main() -> int:
    """Measure, print the table, write the page unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="*", type=Path, help="preference pairs; ../shared/data when left out")
    parser.add_argument("--quick", action="store_true", help="a few rows, no peers, no result page")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    return run_main(lambda workspace: benchmark(workspace, given), name="curate", needs={})


def benchmark(workspace: Path, given: argparse.Namespace) -> None:
    rows = write_pairs(workspace / "rows.jsonl", find_pairs(given.pairs), copies=1 if given.quick else 3)
    results = {}
    for system in OURS if given.quick else (*OURS, *PEERS):
        python = place(system).python if system in PEERS else None
        settings = {"system": system, "rows": str(rows), "repeats": 1 if given.quick else given.repeats}
        results[system] = run_worker(WORKERS / "curate_systems.py", settings, workspace=workspace, python=python)
    table = tables(results)
    print(table)
    if not given.quick:
        facts = {**describe_run(), "Versions": versions({name: [found] for name, found in results.items()})}
        write_result(RESULTS / "curate.md", "Curation", facts, table)


def write_pairs(path: Path, files: Sequence[Path], *, copies: int, first: int = 0) -> Path:
    """Pairs as three texts a row; later copies differ in their first words, so that none is a duplicate by its key."""
    pairs, _ = read_preferences(files, on_bad_row="skip")
    with path.open("w", encoding="utf-8") as file:
        for copy in range(first, first + copies):
            for pair in pairs:
                prompt = f"{copy} " * bool(copy) + "\n".join(message.content for message in pair.prompt)
                row = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def tables(results: dict[str, dict]) -> str:
    """Pairs a second on one core, and how many times a peer's rate ours is."""
    rates = {name: found["rows"] / median(found["seconds"]) for name, found in results.items()}
    rivals = {ours: peer for peer, ours in PEERS.items() if peer in rates}
    rows = [
        [name, ABOUT[name], f"{rate:,.0f}", f"{rate / rates[rivals[name]]:.1f}×" if name in rivals else "–"]
        for name, rate in rates.items()
    ]
    return markdown_table(("system", "what", "pairs/s on one core", "times its peer"), rows)


if __name__ == "__main__":
    sys.exit(main())
