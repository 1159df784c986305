"""Where the work of a run is done: here, in processes of this machine, or on a cluster (`cluster`).

Work is a plain function of one job. It leaves files and gives back something small, in whatever order jobs finish; a
run puts them in order. So one run is written once, and its rows are the same wherever it goes.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Protocol, TypeVar

from hanlin.errors import DataError

Source = TypeVar("Source")
Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(Protocol):
    """What a run asks of them."""

    def read(self, read: Callable[[Source], Iterable[Job]], sources: Iterable[Source]) -> Iterable[Job]:
        """The jobs of every source, for `each`; made no faster than they are worked on."""
        ...

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """What `work` gives of each job, as they finish. What it raises ends the run. Function and jobs are pickled."""
        ...


class LocalWorkers:
    """Processes of this machine; one worker is this process itself. A context manager, which ends them."""

    def __init__(self, count: int) -> None:
        self._count, self._pool = count, None

    def __enter__(self) -> "LocalWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, read: Callable[[Source], Iterable[Job]], sources: Iterable[Source]) -> Iterable[Job]:
        return chain.from_iterable(map(read, sources))

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        if self._count == 1:
            yield from map(work, jobs)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, mp_context=context, initializer=_obey_parent)
        waiting: set[Future[Result]] = set()
        for job in jobs:
            waiting.add(self._pool.submit(work, job))
            while len(waiting) >= 2 * self._count:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)


def _obey_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(waiting: set["Future[Result]"]) -> Iterator[Result]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        waiting.remove(future)
        try:
            yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, most likely for want of memory; run the same command again: it goes on "
                "where it stopped. Fewer run.workers take less"
            ) from None
