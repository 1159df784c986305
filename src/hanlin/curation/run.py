"""A curation run: chunks to workers, duplicates over all chunks, the guard, then the output and its account.

The work directory (`OUTPUT/.work`) holds what is done; a run that was killed goes on from it, and removes it when all
is written. Nothing of the result depends on the workers, their number or kind, or on where a run stopped: chunks are
numbered by the input, and what follows reads them in that order.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from hanlin.config import dump_toml
from hanlin.curation.contamination import Hit, read_benchmarks, report_contamination
from hanlin.curation.deduplication import find_in_chunks
from hanlin.curation.duplicates import Duplicate
from hanlin.curation.guarding import Asking, GuardTask, collect_guarded, guard_tasks
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.shards import find_shards, line_of, write_file
from hanlin.curation.work import Share, finished_chunks, num_rows, part, work_on
from hanlin.curation.workers import LocalWorkers, Workers
from hanlin.errors import ConfigError, DataError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run did: its counts by name, and whether all chunks are there (not so for one rank of several)."""

    directory: Path
    counts: dict[str, int]
    complete: bool

    def total(self, prefix: str) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith(prefix + "|"))


def _unseen(done: int, total: int) -> None:
    pass


def run(
    recipe: CurationRecipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    guard: Asking | None = None,
    workers: Workers | None = None,
    on_progress: Progress,
    on_guarded: Progress = _unseen,
) -> Finished:
    """Curate everything the recipe names. With several ranks each takes its share of the chunks; a last call with one
    rank writes the output. `guard` asks the model that the recipe names (`guarding.asking`). `workers` left out are
    processes of this machine, as many as the recipe says. Progress is in bytes read, then in rows that the guard has
    seen. Raises ConfigError, DataError.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"--rank {rank} should be from 0 to {world_size - 1}, one less than --world-size")
    if recipe.guard.kind and guard is None and world_size == 1:
        raise ConfigError(f"guard.kind = {recipe.guard.kind!r}, and no guard was handed in; use `hanlin curate`")
    output = Path(recipe.output.directory)
    files = _inputs(recipe, output)
    work = _prepared(recipe, files, output)
    if (account := output / "curation.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        return Finished(output, json.loads(account.read_text(encoding="utf-8"))["counts"], True)
    here = LocalWorkers(recipe.run.workers or os.cpu_count() or 1)
    with nullcontext(workers) if workers is not None else here as hands:
        numbers = _curate(recipe, Share(files, finished_chunks(work), rank, world_size), work, hands, on_progress)
        counts = _counts(work, numbers)
        if world_size > 1:
            return Finished(output, counts, False)
        dropped = _duplicates(recipe, work, numbers, counts, hands)
    gone = set(dropped)
    if guard is not None:
        _ask_guard(recipe, work, guard_tasks(work, numbers, gone), guard, on_guarded)
        gone |= collect_guarded(work, numbers, counts)
    _write_output(recipe, output, work, numbers, dropped, gone, counts)
    shutil.rmtree(work)
    return Finished(output, counts, True)


def _ask_guard(
    recipe: CurationRecipe, work: Path, tasks: Sequence[GuardTask], guard: Asking, on_guarded: Progress
) -> None:
    total, seen = sum(task.rows for task in tasks), 0
    on_guarded(0, total)
    for rows in guard(recipe.guard, work, tasks):
        seen += rows
        on_guarded(seen, total)


def _inputs(recipe: CurationRecipe, output: Path) -> list[Path]:
    """The files to read, without what the run itself writes into a folder of them."""
    own = output.expanduser().resolve()
    for name in recipe.input.files:
        path = Path(name).expanduser().resolve()
        if own == path or own in path.parents:
            raise ConfigError(f"{name} lies in output.directory ({output}), which would be written over; name another")
    return [file for file in find_shards(recipe.input.files) if own not in file.resolve().parents]


def _prepared(recipe: CurationRecipe, files: list[Path], output: Path) -> Path:
    """The work directory, made, or checked to be of this recipe and these files."""
    names = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    told = dump_toml(recipe.model_copy(update={"run": type(recipe.run)(chunk_bytes=recipe.run.chunk_bytes)}))
    mark = hashlib.sha256(json.dumps([told, names]).encode()).hexdigest()
    work = output / ".work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output} cannot be made: {error.strerror or error}") from None
    seal = output / ".recipe"
    if seal.exists() and seal.read_text() != mark:
        raise ConfigError(f"{output} holds a run of another recipe or other files; name another output.directory")
    if not seal.exists():
        write_file(seal, [mark.encode()])
    return work


def _curate(recipe: CurationRecipe, share: Share, work: Path, workers: Workers, on_progress: Progress) -> list[int]:
    """Every chunk of the share through the rules; their numbers in order."""
    total = sum(file.stat().st_size for file in share.files)
    read = partial(share.read, chunk_bytes=recipe.run.chunk_bytes, largest_row=recipe.input.largest_row)
    curate = partial(work_on, recipe=recipe.model_dump_json(), run=uuid.uuid4().hex, work=work)
    numbers: list[int] = []
    done = 0
    for number, size in workers.each(curate, workers.read(read, range(len(share.files)))):
        numbers.append(number)
        done += size
        on_progress(min(done, total), total)
    return sorted(numbers)


def _counts(work: Path, numbers: list[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    try:
        for number in numbers:
            counts.update(json.loads(part(work, number, "done.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{work} lacks a chunk that a worker finished; all machines must share this folder") from None
    return counts


def _duplicates(
    recipe: CurationRecipe, work: Path, numbers: list[int], counts: Counter[str], workers: Workers
) -> dict[int, tuple[Duplicate, str, str]]:
    """Rows (numbered over all chunks) that go as duplicates, with the places of both."""
    section = recipe.duplicates
    if not numbers or not (section.exact or section.near):
        return {}
    dropped = {}
    for one, place, of in find_in_chunks(section, work, numbers, workers):
        dropped[one.row] = (one, place, of)
        rule = f"duplicate_{one.key}"
        counts[f"dropped|{rule}"] += 1
        counts[f"decision|row|{rule}|drop"] += 1
        counts[f"by source|{place.rpartition(':')[0]}|{rule}|drop"] += 1
    return dropped


def _write_output(
    recipe: CurationRecipe,
    output: Path,
    work: Path,
    numbers: list[int],
    dropped: dict[int, tuple[Duplicate, str, str]],
    gone: set[int],
    counts: Counter[str],
) -> None:
    from hanlin.curation.account import write_account

    for stale in output.glob(".*.partial"):  # of a run that was killed
        stale.unlink(missing_ok=True)
    suffix = "jsonl.zst" if recipe.output.compress else "jsonl"
    rows = _kept(work, numbers, gone)
    for shard, first in enumerate(rows):
        batch = chain((first,), islice(rows, recipe.output.rows_per_file - 1))
        write_file(output / f"rows-{shard:05d}.{suffix}", batch)
    counts["written|all"] = sum(num_rows(work, number) for number in numbers) - len(gone)
    decisions = _decisions(work, numbers, dropped)
    write_file(output / f"decisions.{suffix}", decisions)
    if recipe.decontamination.files:
        write_file(output / "contamination.jsonl", _lines_of(work, numbers, "found.jsonl"))
    write_file(output / "set-aside.jsonl", _lines_of(work, numbers, "aside.jsonl"))
    findings = [json.loads(line) for line in _lines_of(work, numbers, "found.jsonl")]
    hits = [(one["row"], Hit(one["item"], one["coverage"])) for one in findings]
    reports = report_contamination(read_benchmarks(recipe.decontamination.files), hits)
    write_account(output, recipe, counts, _decisions(work, numbers, dropped), reports)


def _kept(work: Path, numbers: list[int], gone: set[int]) -> Iterator[bytes]:
    for index, line in enumerate(_lines_of(work, numbers, "rows.jsonl")):
        if index not in gone:
            yield line


def _decisions(work: Path, numbers: list[int], dropped: dict[int, tuple[Duplicate, str, str]]) -> Iterator[bytes]:
    yield from _lines_of(work, numbers, "decisions.jsonl")
    if any(part(work, number, "guard.jsonl").exists() for number in numbers):
        yield from _lines_of(work, numbers, "guard.jsonl")
    for row in sorted(dropped):
        one, place, of = dropped[row]
        record = {"row": place, "id": "", "side": "row", "rule": f"duplicate_{one.key}", "version": 1, "action": "drop"}
        yield line_of({**record, "reason": f"like {of}, similarity {one.similarity:.2f}"})


def _lines_of(work: Path, numbers: list[int], name: str) -> Iterator[bytes]:
    for number in numbers:
        with part(work, number, name).open("rb") as file:
            yield from file
