"""Workers on a Ray cluster: tasks for the rules and for duplicates, a pool of actors for a guard that runs there.

Every machine has to see the folder that the run is started in, the input and the output under the same paths: workers
read and write these themselves, and only names and counts come back. So a run goes on anywhere, with Ray or without.
Surprising: a reading task claims no core. It takes little, and with a core of its own it could wait for the workers
that wait for it.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hanlin.curation.guarding import Asking, GuardTask, guard_chunk
from hanlin.curation.guards import Guard
from hanlin.curation.recipe import GuardSection
from hanlin.curation.workers import Job, Result, Source
from hanlin.errors import ConfigError, DataError, HanlinError

_LOG = logging.getLogger(__name__)
_RETRIES = 3  # times that work is given again when its process or machine dies
_READERS = 4  # files read at once
_READ_AHEAD = 4  # chunks of a file that wait for a worker
_PATIENCE = 60.0  # seconds without a guard until we say what is waited for


class RayWorkers:
    """Connected to a cluster; a context manager, which lets go of it.

    `address` is "local" for one on this machine, "auto" for the one this machine belongs to, or HOST:PORT. `tasks` at
    a time; 0: twice the cores, so that none waits for its next (on "local": as many processes as cores, or as `tasks`).
    Raises ConfigError where the extra `cluster` is not installed or no cluster answers.
    """

    def __init__(self, address: str, *, tasks: int = 0) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError('--ray needs Ray: pip install "hanlin[curate,cluster]"') from None
        if address.startswith("ray://"):
            raise ConfigError(f"--ray {address}: the run itself reads the data; start it on a machine of the cluster")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers what runs, unless told not to
        self._ray, self._tasks = ray, 0 if address == "local" else tasks
        local = {"num_cpus": tasks or None, "include_dashboard": False} if address == "local" else {}
        try:
            if ":" in address:  # Ray itself would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--ray {address}: no cluster answers ({str(error).splitlines()[0]})") from None
        self._folder = os.getcwd()

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def read(self, read: Callable[[Source], Iterable[Job]], sources: Iterable[Source]) -> Iterable[Job]:
        """References to the jobs, which go from the machine that reads to the one that works."""
        task = self._ray.remote(_read).options(
            num_cpus=0,
            num_returns="streaming",
            max_retries=_RETRIES,
            _generator_backpressure_num_objects=_READ_AHEAD,
        )
        given = self._ray.put(read)
        left, readers = iter(sources), deque()
        while True:
            while len(readers) < _READERS and (source := next(left, None)) is not None:
                readers.append(task.remote(self._folder, given, source))
            if not readers:
                return
            reader = readers.popleft()
            if (job := next(reader, None)) is not None:
                readers.append(reader)
                yield job

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        task = self._ray.remote(_work).options(num_cpus=1, max_retries=_RETRIES)
        given = self._ray.put(work)
        waiting: list[Any] = []
        try:
            for job in jobs:
                waiting.append(task.remote(self._folder, given, job))
                while len(waiting) >= self._room():
                    yield from self._finished(waiting)
            while waiting:
                yield from self._finished(waiting)
        finally:
            for reference in waiting:
                self._ray.cancel(reference)

    def _room(self) -> int:
        """Tasks to have under way; a cluster that grows with what waits has more of it by and by."""
        return self._tasks or 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _finished(self, waiting: list[Any]) -> Iterator[Any]:
        (ready,), waiting[:] = self._ray.wait(waiting)
        yield self._get(ready)

    def _get(self, reference: Any) -> Any:
        """The value of a reference; what our own code raised there is raised here as it was."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, HanlinError) else error) from None
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ) as error:
            raise DataError(
                f"Ray lost a worker {_RETRIES + 1} times ({type(error).__name__}), most likely for want of memory; run "
                "the same command again: it goes on where it stopped. A smaller run.workers takes less"
            ) from None

    def asking(self, open_guard: Callable[[], Guard | None], *, actors: int, gpus: float) -> Asking:
        """A guard as a pool of actors, each with a copy of its own and so many GPUs. Copies that find no place in the
        cluster are done without; while there is none at all, the run waits, and says so.
        """

        def ask(section: GuardSection, work: Path, tasks: Sequence[GuardTask]) -> Iterator[int]:
            kind = self._ray.remote(_Guarding).options(
                num_cpus=1, num_gpus=gpus, max_restarts=_RETRIES, max_task_retries=_RETRIES
            )
            pool = [kind.remote(self._folder, open_guard) for _ in range(min(actors, len(tasks)))]
            busy: dict[Any, tuple[Any, GuardTask | None]] = {one.open.remote(): (one, None) for one in pool}
            left, under_way = deque(tasks), 0
            try:
                while left or under_way:
                    ready, _ = self._ray.wait(list(busy), timeout=_PATIENCE)
                    if not ready:
                        self._say_what_is_awaited(gpus, under_way)
                        continue
                    one, done = busy.pop(ready[0])
                    self._get(ready[0])
                    if done is not None:
                        under_way -= 1
                        yield done.rows
                    if left:
                        task = left.popleft()
                        busy[one.ask.remote(section, work, task)] = (one, task)
                        under_way += 1
                    else:  # its place may be what another waits for to begin again
                        self._ray.kill(one)
            finally:
                for one in pool:
                    self._ray.kill(one)

        return ask

    def _say_what_is_awaited(self, gpus: float, under_way: int) -> None:
        if not under_way:
            there = self._ray.cluster_resources()
            told = f"{there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs"
            _LOG.warning("no guard is open yet: each takes 1 core and %g GPUs, the cluster has %s", gpus, told)


def _read(folder: str, read: Callable[[Source], Iterable[Job]], source: Source) -> Iterator[Job]:
    _enter(folder)
    yield from read(source)


def _work(folder: str, work: Callable[[Job], Result], job: Job) -> Result:
    _enter(folder)
    return work(job)


def _enter(folder: str) -> None:
    """So that relative paths mean what they mean where the run was started."""
    try:
        os.chdir(folder)
    except OSError:
        raise DataError(
            f"{folder} is not there on {socket.gethostname()}; start the run in a folder that all machines share"
        ) from None


class _Guarding:
    """An actor with a guard of its own."""

    def __init__(self, folder: str, open_guard: Callable[[], Guard | None]) -> None:
        self._folder, self._open = folder, open_guard

    @cached_property
    def _guard(self) -> Guard | None:
        _enter(self._folder)
        return self._open()

    def open(self) -> None:
        """What goes wrong here is an error of ours; in the constructor it would be a dead actor."""
        _ = self._guard

    def ask(self, section: GuardSection, work: Path, task: GuardTask) -> None:
        if self._guard is not None:
            guard_chunk(section, work, task, self._guard)
