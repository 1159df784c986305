"""A curation run on a Ray cluster: Ray Data reads, applies the rules, groups bands, and feeds the guard's actors.

Every machine has to see the input and the output folder under the same path: chunks leave the same files as in a run
without Ray, so that the rows are the same, and a run that was killed here goes on there. Rows that share a band are
found band by band, through these files; which of them stay is decided in one place, from the best to the worst.
"""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.duplicates import Grouping
from hanlin.curation.fingerprints import NUM_BANDS
from hanlin.curation.guarding import GuardTask, guard_chunk
from hanlin.curation.guards import Guard
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.shards import read_file
from hanlin.curation.signatures import hash_bands
from hanlin.curation.work import curate_chunk, is_done, make_tools, num_rows, part
from hanlin.errors import ConfigError

Batch = dict[str, Any]
_READING, _RULES = 0.25, 0.75  # of a core for each file that is read, and for each actor: one of each has its place


class RayCluster:
    """Connected to a cluster; a context manager, which lets go of it.

    `address` is "local" for one on this machine, "auto" for the one this machine belongs to, or ray://HOST:PORT.
    Raises ConfigError where the extra `cluster` is not installed.
    """

    def __init__(self, address: str, *, open_guard: Callable[[CurationRecipe], Guard | None], cores: int | None = None):
        try:
            import ray  # pyright: ignore[reportMissingImports]
            import ray.data  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError('--ray needs Ray: pip install "hanlin[curate,cluster]"') from None
        self._ray, self._open_guard = ray, open_guard
        try:
            ray.init(
                address=None if address == "local" else address,
                num_cpus=cores if address == "local" else None,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"--ray {address}: no cluster answers ({str(error).splitlines()[0]})") from None
        self._cores = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _dataset(self, rows: list[Batch], block_bytes: int = 1_000_000) -> Any:
        """Rows as a dataset with one block for each; a block that is made of them is as large as one chunk."""
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context.target_max_block_size = block_bytes
        return self._ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))

    def through(self, recipe: CurationRecipe, files: Sequence[Path], work: Path) -> Iterator[tuple[int, int]]:
        """Number and size of every chunk that is done, as they finish."""
        workers = min(recipe.run.workers or self._cores, self._cores)
        given = {"files": [str(file.absolute()) for file in files], "work": str(work.absolute())}
        limits = {"chunk_bytes": recipe.run.chunk_bytes, "largest_row": recipe.input.largest_row}
        chunks = self._dataset([{"place": place} for place in range(len(files))], recipe.run.chunk_bytes).map_batches(
            _read, batch_size=1, fn_kwargs={**given, **limits}, num_cpus=_READING
        )
        done = chunks.map_batches(
            _Rules,
            batch_size=1,
            compute=self._ray.data.ActorPoolStrategy(size=workers),
            num_cpus=_RULES,
            fn_constructor_args=(recipe.model_dump_json(), given["work"]),
        )
        for row in done.iter_rows():
            yield int(row["number"]), int(row["size"])

    def grouping(self, work: Path, numbers: Sequence[int]) -> Grouping:
        """Finds the rows that share a band: every chunk leaves its bands, then every band is grouped by itself."""
        count = sum(num_rows(work, number) for number in numbers)

        def group(column: int) -> NDArray[np.int32]:
            groups = np.full((count, NUM_BANDS), -1, np.int32)
            given = {"work": str(work.absolute()), "column": column}
            chunks = self._dataset([{"number": number} for number in numbers])
            chunks.map_batches(_write_bands, batch_size=1, fn_kwargs=given).count()
            bands = self._dataset([{"band": band} for band in range(NUM_BANDS)], 64_000_000)
            for found in bands.map_batches(
                _group_band, batch_size=1, fn_kwargs={**given, "numbers": list(numbers)}
            ).iter_batches(batch_size=None):
                groups[found["row"], found["band"]] = found["group"]
            base = 0
            for band in range(NUM_BANDS):
                shared = groups[:, band] >= 0
                groups[shared, band] += base
                base = max(base, int(groups[:, band].max(initial=-1)) + 1)
            return groups

        return group

    def guarded(self, recipe: CurationRecipe, work: Path, tasks: Sequence[GuardTask]) -> Iterator[int]:
        """Rows of each chunk that the guard has seen, as they finish: a pool of actors, each with its own model."""
        if not tasks:
            return
        rows = [{"task": pickle.dumps(task), "rows": task.rows} for task in tasks]
        told = self._dataset(rows).map_batches(
            _Guarding,
            batch_size=1,
            compute=self._ray.data.ActorPoolStrategy(size=recipe.run.guard_actors),
            num_gpus=recipe.run.guard_gpus,
            fn_constructor_args=(self._open_guard, recipe.model_dump_json(), str(work.absolute())),
        )
        for row in told.iter_rows():
            yield int(row["rows"])


def _read(batch: Batch, *, files: list[str], work: str, chunk_bytes: int, largest_row: int) -> Iterator[Batch]:
    """The chunks of a file; those that are done already without their rows."""
    paths = [Path(file) for file in files]
    for place in batch["place"].tolist():
        for chunk in read_file(paths, place, chunk_bytes=chunk_bytes, largest_row=largest_row):
            told = b"" if is_done(Path(work), chunk.number) else pickle.dumps(chunk)
            yield {"number": [chunk.number], "size": [chunk.consumed], "chunk": np.array([told], object)}


class _Rules:
    """An actor that applies the rules."""

    def __init__(self, recipe: str, work: str) -> None:
        self._tools, self._work = make_tools(CurationRecipe.model_validate_json(recipe)), Path(work)

    def __call__(self, batch: Batch) -> Batch:
        for told in batch["chunk"]:
            if told:
                curate_chunk(pickle.loads(told), self._work, self._tools)
        return {"number": batch["number"], "size": batch["size"]}


def _bands_file(work: str, number: int, column: int) -> Path:
    return part(Path(work), number, f"bands-{column}.npy")


def _write_bands(batch: Batch, *, work: str, column: int) -> Batch:
    """Leave a chunk's bands, one after the other: 20 × the rows that have the text of this key."""
    for number in batch["number"].tolist():
        with np.load(part(Path(work), number, "npz")) as arrays:
            hashes = hash_bands(arrays["near"][arrays["present"][:, column], column])
        np.save(_bands_file(work, number, column), np.ascontiguousarray(hashes.T))
    return {"number": batch["number"]}


def _group_band(batch: Batch, *, work: str, column: int, numbers: list[int]) -> Iterator[Batch]:
    """The rows that agree in one band with another row, each with the number of its group."""
    for band in batch["band"].tolist():
        values, rows, first = [], [], 0
        for number in numbers:
            values.append(np.array(np.load(_bands_file(work, number, column), mmap_mode="r")[band]))
            with np.load(part(Path(work), number, "npz")) as arrays:
                present = arrays["present"][:, column]
            rows.append(np.flatnonzero(present) + first)
            first += len(present)
        _, inverse, counts = np.unique(np.concatenate(values), return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        row = np.concatenate(rows)[shared]
        dense = (np.cumsum(counts > 1) - 1)[inverse][shared].astype(np.int32)
        yield {"row": row, "group": dense, "band": np.full(len(row), band)}


class _Guarding:
    """An actor with a guard of its own."""

    def __init__(self, open_guard: Callable[[CurationRecipe], Guard | None], recipe: str, work: str) -> None:
        self._recipe, self._work = CurationRecipe.model_validate_json(recipe), Path(work)
        self._guard = open_guard(self._recipe)

    def __call__(self, batch: Batch) -> Batch:
        for told in batch["task"]:
            if self._guard is not None:
                guard_chunk(self._recipe.guard, self._work, pickle.loads(told), self._guard)
        return {"rows": batch["rows"]}
