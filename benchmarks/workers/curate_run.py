"""One whole curation run in a process of its own: seconds, and the most memory that it and its workers held at a time.

No torch: its memory would be counted too. With Ray: on a cluster of this machine, whose start is timed by itself; its
worker processes start within the run, as those without Ray do.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanlin.curation.cluster import RayWorkers

_EVERY = 0.5  # seconds between two looks at the memory


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run the recipe."""
    from hanlin.curation.recipe import CurationRecipe
    from hanlin.curation.run import run

    recipe = CurationRecipe.model_validate_json(settings["recipe"])
    with ExitStack() as stack:
        peak = stack.enter_context(watched())
        begin = time.perf_counter()
        workers = stack.enter_context(started_ray(recipe.run.workers)) if settings["ray"] else None
        started = time.perf_counter()
        done = run(recipe, workers=workers, on_progress=lambda *_: None)
        seconds = time.perf_counter() - started
    told = {"seconds": seconds, "start": started - begin, "rows": done.total("read"), "written": done.total("written")}
    return {**told, **peak}


def started_ray(workers: int) -> "RayWorkers":
    from hanlin.curation.cluster import RayWorkers

    return RayWorkers("local", tasks=workers)


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most memory of all processes together, and of the largest one, while the block runs (Linux). A process of
    its own looks: a thread would take turns with what is measured.
    """
    peak = {"together": 0, "largest": 0}
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    watcher = multiprocessing.get_context("fork").Process(target=look, args=(os.getpid(), theirs), daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ours.send("the end")
        peak |= ours.recv()
        watcher.join()


def look(parent: int, told: Connection) -> None:
    """Watch a process and all below it but this one, until told to end; then tell the peaks."""
    together = largest = 0
    while not told.poll(_EVERY):
        sizes = [resident(process) for process in family(str(parent)) if process.name != str(os.getpid())]
        together, largest = max(together, sum(sizes)), max(largest, *sizes, 0)
    told.send({"together": together, "largest": largest})


def family(parent: str) -> list[Path]:
    """A process and all below it."""
    parents: dict[str, list[str]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            above = status.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
        parents.setdefault(above, []).append(status.parent.name)
    found, queue = [], [parent]
    while queue:
        one = queue.pop()
        found.append(Path("/proc") / one)
        queue += parents.get(one, [])
    return found


def resident(process: Path) -> int:
    """Bytes of memory of one process, pages that it shares counted by their share."""
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    result = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
