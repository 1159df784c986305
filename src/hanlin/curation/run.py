"""A curation run: chunks to worker processes, duplicates over all chunks, then the output and its account.

The work directory (`OUTPUT/.work`) holds what is done; a run that was killed goes on from it, and removes it when all
is written. Nothing of the result depends on the number of workers, or on where a run stopped: chunks are
numbered by the input, and what follows reads them in that order.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hanlin.config import dump_toml
from hanlin.curation.contamination import Hit, read_benchmarks, report_contamination
from hanlin.curation.duplicates import Duplicate, find_duplicates, join_prints
from hanlin.curation.guarding import GuardTask, collect_guarded, guard_chunk, guard_tasks
from hanlin.curation.guards import Guard
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.shards import Chunk, find_shards, line_of, read_chunks, write_file, writing
from hanlin.curation.work import Tools, curate_chunk, is_done, make_tools, part
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
    guard: Guard | None = None,
    on_progress: Progress,
    on_guarded: Progress = _unseen,
) -> Finished:
    """Curate everything the recipe names. With several ranks each takes its share of the chunks; a last call with one
    rank writes the output. `guard` is the model that the recipe names. Progress is
    in bytes read, then in rows that the guard has seen. Raises ConfigError, DataError.
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
    total = sum(file.stat().st_size for file in files)
    numbers: list[int] = []
    done = 0
    for number, size in _through(recipe, files, work, rank, world_size):
        numbers.append(number)
        done += size
        on_progress(min(done, total), total)
    numbers.sort()
    if world_size > 1:
        return Finished(output, _counts(work, [one for one in numbers if is_done(work, one)]), False)
    counts = _counts(work, numbers)
    dropped = _duplicates(recipe, work, numbers, counts)
    gone = set(dropped)
    if guard is not None:
        _ask_guard(recipe, work, guard_tasks(work, numbers, gone), guard, on_guarded)
        gone |= collect_guarded(work, numbers, counts)
    _write_output(recipe, output, work, numbers, dropped, gone, counts)
    shutil.rmtree(work)
    return Finished(output, counts, True)


def _ask_guard(
    recipe: CurationRecipe, work: Path, tasks: Sequence[GuardTask], guard: Guard, on_guarded: Progress
) -> None:
    total, seen = sum(task.rows for task in tasks), 0
    on_guarded(0, total)
    for task in tasks:
        guard_chunk(recipe.guard, work, task, guard)
        seen += task.rows
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


def _through(
    recipe: CurationRecipe, files: list[Path], work: Path, rank: int, world_size: int
) -> Iterator[tuple[int, int]]:
    """Every chunk of this rank through a worker; number and size of each that is done, as they finish."""
    workers = recipe.run.workers or os.cpu_count() or 1
    chunks = read_chunks(files, chunk_bytes=recipe.run.chunk_bytes, largest_row=recipe.input.largest_row)
    mine = (chunk for place, chunk in enumerate(chunks) if place % world_size == rank)
    if workers == 1:
        tools = make_tools(recipe)
        for chunk in mine:
            if not is_done(work, chunk.number):
                curate_chunk(chunk, work, tools)
            yield chunk.number, chunk.consumed
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_obey_parent) as pool:
        waiting: dict[Future[None], tuple[int, int]] = {}
        try:
            for chunk in mine:
                if is_done(work, chunk.number):
                    yield chunk.number, chunk.consumed
                    continue
                waiting[pool.submit(_work, recipe.model_dump_json(), chunk, work)] = (chunk.number, chunk.consumed)
                while len(waiting) >= 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except BrokenProcessPool:
            help = "lower run.workers or run.chunk_bytes, and run it again: it goes on where it stopped"
            raise DataError(f"a worker process was killed (was there too little memory?); {help}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _obey_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(waiting: dict["Future[None]", tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        future.result()
        yield waiting.pop(future)


@cache
def _tools(recipe: str) -> Tools:
    """Loaded once in each worker process."""
    return make_tools(CurationRecipe.model_validate_json(recipe))


def _work(recipe: str, chunk: Chunk, work: Path) -> None:
    curate_chunk(chunk, work, _tools(recipe))


def _counts(work: Path, numbers: list[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number in numbers:
        counts.update(json.loads(part(work, number, "done.json").read_text(encoding="utf-8")))
    return counts


def _duplicates(
    recipe: CurationRecipe, work: Path, numbers: list[int], counts: Counter[str]
) -> dict[int, tuple[Duplicate, str, str]]:
    """Rows (numbered over all chunks) that go as duplicates, with the places of both."""
    section = recipe.duplicates
    if not numbers or not (section.exact or section.near):
        return {}
    small, places = _gathered(work, numbers)
    dropped = {}
    with (work / "near.bin").open("rb") as near:
        found = list(
            find_duplicates(
                join_prints(small, near),
                keys=section.near,
                exact=section.exact,
                threshold=section.threshold,
                better=section.better,
            )
        )
    for one in found:
        place, of = places[one.row].decode(), places[one.of].decode()
        dropped[one.row] = (one, place, of)
        rule = f"duplicate_{one.key}"
        counts[f"dropped|{rule}"] += 1
        counts[f"decision|row|{rule}|drop"] += 1
        counts[f"by source|{place.rpartition(':')[0]}|{rule}|drop"] += 1
    return dropped


def _gathered(work: Path, numbers: list[int]) -> tuple[list[dict[str, np.ndarray]], list[bytes]]:
    """Prints of all chunks without signatures, which go to one file; and the places of the rows."""
    small: list[dict[str, np.ndarray]] = []
    places: list[bytes] = []
    with writing(work / "near.bin"), (work / "near.bin").open("wb") as file:
        for number in numbers:
            with np.load(part(work, number, "npz")) as arrays:
                file.write(np.ascontiguousarray(arrays["near"]).tobytes())
                places += arrays["places"].tolist()
                small.append({name: arrays[name] for name in ("exact", "present", "size", "tie")})
    return small, places


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
    compress = recipe.output.compress
    suffix = "jsonl.zst" if compress else "jsonl"
    rows = _kept(work, numbers, gone)
    shard = kept = 0
    while batch := _next_rows(rows, recipe.output.rows_per_file):
        write_file(output / f"rows-{shard:05d}.{suffix}", batch, compress=compress)
        shard, kept = shard + 1, kept + len(batch)
    counts["written|all"] = kept
    decisions = _decisions(work, numbers, dropped)
    write_file(output / f"decisions.{suffix}", decisions, compress=compress)
    if recipe.decontamination.files:
        write_file(output / "contamination.jsonl", _lines_of(work, numbers, "found.jsonl"))
    write_file(output / "set-aside.jsonl", _lines_of(work, numbers, "aside.jsonl"))
    findings = [json.loads(line) for line in _lines_of(work, numbers, "found.jsonl")]
    hits = [(one["row"], Hit(one["item"], one["coverage"])) for one in findings]
    reports = report_contamination(read_benchmarks(recipe.decontamination.files), hits)
    write_account(output, recipe, counts, _decisions(work, numbers, dropped), reports)


def _next_rows(rows: Iterator[bytes], count: int) -> list[bytes]:
    return [row for _, row in zip(range(count), rows, strict=False)]


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
