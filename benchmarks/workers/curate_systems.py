"""One system of `curate.py` in a process of its own, on one core: how many rows a second it takes.

Presidio and datasketch live in environments without Hanlin and without torch, so this file needs neither to be read.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Texts = tuple[str, str, str]  # prompt, chosen, rejected
PERMUTATIONS = 120


def hanlin_rules(rows: Sequence[dict[str, Any]]) -> None:
    from hanlin.curation.policy import curate_row
    from hanlin.curation.recipe import CurationSection
    from hanlin.curation.toxicity import judge_toxicity

    config = CurationSection()
    for number, row in enumerate(rows):
        curate_row(row, str(number), config, judge=judge_toxicity)


def hanlin_personal(rows: Sequence[dict[str, Any]]) -> None:
    from hanlin.curation.personal import find_personal
    from hanlin.curation.rule import Text

    for row in rows:
        for text in texts_of(row):
            find_personal(Text(text))


def presidio(rows: Sequence[dict[str, Any]]) -> None:
    """Its recognizers that are patterns, without an NLP engine: what finds the kinds that ours find and it knows."""
    from presidio_analyzer import predefined_recognizers as known

    makers = ("CreditCardRecognizer", "EmailRecognizer", "IpRecognizer", "PhoneRecognizer", "UsSsnRecognizer")
    recognizers = [getattr(known, name)() for name in (*makers, "UrlRecognizer", "UsPassportRecognizer")]
    for row in rows:
        for text in texts_of(row):
            for recognizer in recognizers:
                recognizer.analyze(text, entities=recognizer.supported_entities, nlp_artifacts=None)


def hanlin_near(rows: Sequence[dict[str, Any]]) -> None:
    """Near-duplicates on three keys."""
    from hanlin.curation.duplicates import KEYS, find_duplicates, make_prints
    from hanlin.curation.rule import Text

    sides = ("prompt", "chosen", "rejected")
    named = [list(zip(sides, map(Text, texts_of(row)), strict=True)) for row in rows]
    list(find_duplicates(make_prints(named), keys=KEYS, better="first"))


def datasketch(rows: Sequence[dict[str, Any]]) -> None:
    """The same three keys, shingles of three characters, its LSH index."""
    from datasketch import MinHash, MinHashLSH

    indexes = [MinHashLSH(threshold=0.7, num_perm=PERMUTATIONS) for _ in range(3)]
    for number, row in enumerate(rows):
        prompt, chosen, rejected = texts_of(row)
        for index, text in zip(indexes, (prompt, prompt + chosen, prompt + chosen + rejected), strict=True):
            made = MinHash(num_perm=PERMUTATIONS)
            made.update_batch([text[place : place + 3].encode() for place in range(max(1, len(text) - 2))])
            if not index.query(made):
                index.insert(str(number), made)


def texts_of(row: dict[str, Any]) -> Texts:
    return row["prompt"], row["chosen"], row["rejected"]


SYSTEMS: dict[str, Callable[[Sequence[dict[str, Any]]], None]] = {
    "hanlin rules": hanlin_rules,
    "hanlin personal": hanlin_personal,
    "presidio": presidio,
    "hanlin near": hanlin_near,
    "datasketch": datasketch,
}
_PACKAGES = ("hanlin", "rensa", "opencc", "presidio-analyzer", "datasketch", "numpy")


def measure(system: str, rows: Sequence[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Seconds of each pass over the rows, the first (loading, caches) left out."""
    SYSTEMS[system](rows[:20])
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        SYSTEMS[system](rows)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "rows": len(rows), "versions": _versions()}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines = Path(given["rows"]).read_text(encoding="utf-8").splitlines()
    result = measure(given["system"], [json.loads(line) for line in lines], given["repeats"])
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
