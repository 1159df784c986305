"""The guard's pass over the rows that the rules and the search for duplicates left: a model is dear, so it comes last.

A chunk's verdicts are two files in the work directory, chunk-000000007.guard.jsonl (decisions) and, written last,
chunk-000000007.guard.json (rows that go, counts): a run that was killed goes on with the next chunk.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hanlin.curation.guards import Guard
from hanlin.curation.policy import Decision
from hanlin.curation.recipe import GuardSection
from hanlin.curation.rows import ASKED, Slot, read_slots
from hanlin.curation.rule import Verdict
from hanlin.curation.shards import line_of, write_file
from hanlin.curation.work import num_rows, part

Asking = Callable[[GuardSection, Path, "Sequence[GuardTask]"], Iterator[int]]
"""Who asks a guard about the chunks of a work directory: the rows of each, as they finish."""


@dataclass(frozen=True, slots=True)
class GuardTask:
    """One chunk that the guard has not seen: how many rows it has, and which of them went before."""

    number: int
    rows: int
    gone: frozenset[int]


def asking(guard: Guard) -> Asking:
    """One guard, asked from this process."""

    def ask(section: GuardSection, work: Path, tasks: Sequence[GuardTask]) -> Iterator[int]:
        for task in tasks:
            guard_chunk(section, work, task, guard)
            yield task.rows

    return ask


def guard_tasks(work: Path, numbers: Sequence[int], gone: set[int]) -> list[GuardTask]:
    """What is left to do. `gone` rows are numbered over all chunks."""
    tasks, first, left = [], 0, sorted(gone)
    start = 0
    for number in numbers:
        rows = num_rows(work, number)
        end = start
        while end < len(left) and left[end] < first + rows:
            end += 1
        if not part(work, number, "guard.json").exists():
            tasks.append(GuardTask(number, rows, frozenset(row - first for row in left[start:end])))
        first, start = first + rows, end
    return tasks


def collect_guarded(work: Path, numbers: Sequence[int], counts: Counter[str]) -> set[int]:
    """Rows, numbered over all chunks, that the guard dropped; its counts are added to `counts`."""
    dropped: set[int] = set()
    first = 0
    for number in numbers:
        told = json.loads(part(work, number, "guard.json").read_text(encoding="utf-8"))
        dropped.update(first + index for index in told["dropped"])
        counts.update(told["counts"])
        first += num_rows(work, number)
    return dropped


def guard_chunk(section: GuardSection, work: Path, task: GuardTask, guard: Guard) -> None:
    """Ask the guard about a chunk's rows and write down what it says."""
    lines = part(work, task.number, "rows.jsonl").read_bytes().split(b"\n")[:-1]
    with np.load(part(work, task.number, "npz")) as arrays:
        places = [place.decode() for place in arrays["places"].tolist()]
    left = [index for index in range(len(lines)) if index not in task.gone]

    def judge(index: int) -> list[tuple[str, Verdict]]:
        _, slots, _ = read_slots(json.loads(lines[index]), places[index])
        return [(side, guard(prompt, answer)) for side, prompt, answer in questions(slots, section.sides)]

    with ThreadPoolExecutor(section.parallel) as pool:
        judged = list(pool.map(judge, left))
    decisions, dropped, counts = [], [], Counter[str]()
    for index, verdicts in zip(left, judged, strict=True):
        objections = [(side, verdict) for side, verdict in verdicts if not verdict.keep]
        for side, verdict in objections:
            decision = Decision(side, "guard", 1, section.action, verdict.reason)
            decisions.append(line_of({"row": places[index], "id": "", **asdict(decision)}))
            counts[f"decision|{side}|guard|{section.action}"] += 1
            counts[f"by source|{places[index].rpartition(':')[0]}|guard|{section.action}"] += 1
        if objections and section.action == "drop":
            dropped.append(index)
            counts["dropped|guard"] += 1
    write_file(part(work, task.number, "guard.jsonl"), decisions)
    told = {"dropped": dropped, "counts": counts}
    write_file(part(work, task.number, "guard.json"), [json.dumps(told, ensure_ascii=False).encode()])


def questions(slots: Sequence[Slot], sides: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """(side, prompt, answer) of every text that the guard looks at; the prompt is the last one that was asked."""
    asked = ""
    for side, text in slots:
        if side in ASKED:
            asked = text
        if side in sides:
            yield (side, text, None) if side in (*ASKED, "document") else (side, asked, text)
