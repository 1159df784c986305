"""A curation run on a Ray cluster: Ray Data reads and applies the rules, shuffles bands, and feeds the guard's actors.

Every machine has to see the input and the output folder under the same path: chunks leave the same files as they do in
a run without Ray, so that the rows are the same, and a run that was killed here goes on there. Only what finds rows that
share a band goes through a shuffle; which of them stay is decided in one place, from the best to the worst, as ever.
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
        """Finds the rows that share a band, by a shuffle."""
        firsts = np.cumsum([0, *(num_rows(work, number) for number in numbers)]).tolist()
        parts = 2 * self._cores

        def group(column: int) -> NDArray[np.int32]:
            groups = np.full((firsts[-1], NUM_BANDS), -1, np.int32)
            if not firsts[-1]:
                return groups
            chunks = [{"number": number, "first": first} for number, first in zip(numbers, firsts, strict=False)]
            bands = self._dataset(chunks, 32_000_000).map_batches(
                _bands_of,
                batch_size=1,
                fn_kwargs={"work": str(work.absolute()), "column": column, "parts": parts},
            )
            base = 0
            for found in (
                bands.groupby("part", num_partitions=parts)
                .map_groups(_shared, batch_format="numpy")
                .iter_batches(batch_size=None)
            ):
                if len(found["row"]):
                    _, dense = np.unique(np.stack((found["part"], found["group"])), axis=1, return_inverse=True)
                    groups[found["row"], found["band"]] = dense.ravel() + base
                    base += int(dense.max()) + 1
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


def _bands_of(batch: Batch, *, work: str, column: int, parts: int) -> Iterator[Batch]:
    """Every band of every row that has the text of this key, and the part of the shuffle that it belongs to."""
    for number, first in zip(batch["number"].tolist(), batch["first"].tolist(), strict=True):
        with np.load(part(Path(work), number, "npz")) as arrays:
            rows = np.flatnonzero(arrays["present"][:, column])
            hashes = hash_bands(arrays["near"][rows, column])
        told = {
            "value": hashes.ravel(),
            "row": np.repeat(rows + first, NUM_BANDS),
            "band": np.tile(np.arange(NUM_BANDS), len(rows)),
        }
        yield {**told, "part": ((told["value"] >> np.uint64(32)) % np.uint64(parts)).astype(np.int64)}


def _shared(batch: Batch) -> Batch:
    """Of one part the rows that share a band's value with another row, and the number of their group in the part."""
    values = np.stack((batch["value"], batch["band"].astype(np.uint64)))
    _, inverse, counts = np.unique(values, axis=1, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    shared = counts[inverse] > 1
    return {
        "part": batch["part"][shared],
        "group": inverse[shared],
        "row": batch["row"][shared],
        "band": batch["band"][shared],
    }


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
