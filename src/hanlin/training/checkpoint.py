"""Checkpoints: a Hugging Face directory + `state/` + `recipe.toml`, written whole or not at all.

    RUN/recipe.toml  metrics.jsonl  metrics.png            the run's own files
    RUN/config.json  model.safetensors  tokenizer.json …   the finished model: a run directory is a model directory
    RUN/checkpoints/step-000120/                           the same files plus state/, enough to go on bit for bit

`state/` holds the weights that are trained in their own dtype (fp32 masters; bf16; under [lora] adapters alone), all
that the optimizer remembers of them, and how far the run is. It goes from memory to the disk and back a piece at a
time. A checkpoint is written under a hidden name, flushed to the disk and renamed; one that goes is renamed to a hidden
name before it is deleted. What has a visible name is whole.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import PickleError

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from hanlin.errors import CheckpointError, TrainingError
from hanlin.models.parts import read_slice
from hanlin.models.tensorfile import STATE_DTYPES, StoredTensor, read_header, write_tensors
from hanlin.models.transformer import Transformer
from hanlin.training.fit import Fit
from hanlin.training.optim import lay_out_states
from hanlin.training.parallel import World, is_sharded, local, local_place

FOLDER = "checkpoints"
_STATE = "state"
_WEIGHTS, _PROGRESS = "weights.safetensors", "progress.json"
# Of the optimizer: tensors as "PARAMETER/KEY"; its class, and under the same names what is a plain number.
_MOMENTS, _OPTIMIZER = "moments.safetensors", "optimizer.json"
_SHARDS = "shards"
_OF_WEIGHTS, _OF_MOMENTS = "weights/", "moments/"  # how the names of tensors begin there

Placed = Callable[[str, Tensor], Tensor]
"""A parameter's name and this rank's memory of it, or of a state of its shape → the tensor that this is a part of."""


def _as_it_is(name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is: optimizer steps done, stream tokens and pairs (or other examples) seen. `data` is the
    fingerprint of what it trains on, `fit` how its steps are computed (training/fit.py): without the same ones, going
    on is not bit for bit.
    """

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    data: str = ""
    threads: int = 0
    ranks: int = 1
    torch: str = ""
    fit: Fit = field(default_factory=Fit)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    whole = [path for path in (run / FOLDER).glob("step-*") if (path / _STATE / _PROGRESS).is_file()]
    return sorted(whole, key=lambda path: (len(path.name), path.name))


def model_in(path: Path) -> Path:
    """The model to open for a path: itself, or the newest checkpoint of a run that is not finished."""
    found = checkpoints(path) if path.is_dir() and not (path / "config.json").exists() else []
    return found[-1] if found else path


def save_checkpoint(
    run: Path,
    progress: Progress,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    *,
    write_model: Callable[[Path], None],
    keep_last: int,
) -> Path:
    """Write RUN/checkpoints/step-N, then remove all but the newest `keep_last`. `write_model` writes the Hugging Face
    files and the recipe.
    """
    try:
        partial = begin(run, progress)
        write_model(partial)
        _write_state(partial / _STATE, model, optimizer)
        complete(run, progress)
    except (OSError, CheckpointError) as error:
        raise abandoned(run, progress, failure_reason(error)) from None
    forget(run, keep_last=keep_last)
    return place_of(run, progress)


def place_of(run: Path, progress: Progress) -> Path:
    """Where the checkpoint of this step lies."""
    return run / FOLDER / f"step-{progress.step:06d}"


def _partial(run: Path, progress: Progress) -> Path:
    return run / FOLDER / f".partial-{progress.step:06d}"


def begin(run: Path, progress: Progress) -> Path:
    """Remove what killed runs left, and make the hidden directory that this checkpoint is written into."""
    _sweep(run / FOLDER)
    partial = _partial(run, progress)
    (partial / _STATE).mkdir(parents=True)
    return partial


def complete(run: Path, progress: Progress) -> None:
    """All files are there: note the progress, flush them to the disk and give the directory its visible name."""
    final, partial = place_of(run, progress), _partial(run, progress)
    (partial / _STATE / _PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    if final.exists():
        _discard(final)
    os.replace(partial, final)
    _flush(final.parent)


def abandoned(run: Path, progress: Progress, reason: str) -> TrainingError:
    """What is said of a checkpoint that could not be written; what there is of it goes."""
    shutil.rmtree(_partial(run, progress), ignore_errors=True)
    return TrainingError(
        f"checkpoint {place_of(run, progress)} could not be written ({reason}): free space or choose another "
        f"output.directory; "
        "earlier checkpoints are untouched, go on from them with --resume"
    )


def forget(run: Path, *, keep_last: int) -> None:
    """Remove all but the newest checkpoints."""
    for old in checkpoints(run)[:-keep_last]:
        _discard(old)


def restore_checkpoint(
    path: Path, model: Transformer, optimizer: torch.optim.Optimizer, placed: Placed = _as_it_is
) -> Progress:
    """Fill the trained weights and the optimizer's states from a checkpoint; return how far it is. Where weights are
    divided over a team of ranks, `placed` says which part this rank has.

    Raises CheckpointError where it is damaged, or belongs to another model or optimizer.
    """
    state = path / _STATE
    try:
        saved = json.loads((state / _PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(**{**saved, "fit": Fit(**saved["fit"])})
        parameters = _trained(model)
        if (state / _SHARDS).is_dir():
            _read_shards(state, parameters, optimizer, placed)
            return progress
        stored = read_header(state / _WEIGHTS)
        if odd := sorted(stored.keys() ^ parameters.keys()):
            raise ValueError(f"{odd[0]} is trained here or there only")
        for name, tensor in stored.items():
            _fill(placed(name, parameters[name].data), tensor)
        _restore_optimizer(state, parameters, optimizer, placed)
    except (
        OSError, CheckpointError, CheckpointException, ValueError, TypeError, KeyError, AttributeError, PickleError,
        EOFError,
    ) as error:  # fmt: skip
        reason, _, _ = str(error).partition("\n")
        raise CheckpointError(
            f"{path} cannot be read ({reason}): remove it and --resume goes on from the checkpoint before it"
        ) from None
    return progress


def failure_reason(error: OSError | CheckpointError) -> str:
    """What the system said: the rooms that write a model's files wrap it into a message of their own."""
    cause = error.__context__ if isinstance(error, CheckpointError) else error
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _write_state(folder: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    parameters = _trained(model)
    write_tensors(folder / _WEIGHTS, {name: parameter.data for name, parameter in parameters.items()}, None)
    tensors, numbers = _remembered(parameters, optimizer)
    # The widest first, so that each lies at a multiple of its size: readers map the file.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    write_tensors(folder / _MOMENTS, ordered, None)
    _write_record(folder, optimizer, len(tensors), numbers)


def _remembered(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What the optimizer keeps, as "PARAMETER/KEY": its tensors, and its plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{name}/{key}"] = value
    return tensors, numbers


def _write_record(folder: Path, optimizer: torch.optim.Optimizer, num_tensors: int, numbers: dict[str, float]) -> None:
    record = {"class": type(optimizer).__name__, "tensors": num_tensors, "numbers": numbers}
    (folder / _OPTIMIZER).write_text(json.dumps(record), encoding="utf-8")


def own_state(
    model: Transformer, optimizer: torch.optim.Optimizer, world: World, placed: Placed = _as_it_is
) -> dict[str, Tensor]:
    """What this rank writes of the state of several, by the names in the files. Of divided tensors it is a part; whole
    ones are shared out by size.
    """
    parameters = _trained(model)
    remembered, _ = _remembered(parameters, optimizer)
    tensors = {f"{_OF_WEIGHTS}{name}": placed(name, parameter.data) for name, parameter in parameters.items()}
    tensors |= {f"{_OF_MOMENTS}{name}": placed(name.rpartition("/")[0], one) for name, one in remembered.items()}
    return _own(tensors, world)


def note_optimizer(partial: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    """Write down what the optimizer is, and what it remembers beside tensors; one rank does."""
    remembered, numbers = _remembered(_trained(model), optimizer)
    _write_record(partial / _STATE, optimizer, len(remembered), numbers)


def write_shards(partial: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write everybody's `own_state` under `partial`; every rank calls this, and when it returns on rank 0 all files are
    there. `group` is for CPU tensors and used by nobody else meanwhile.
    """
    writer = FileSystemWriter(partial / _STATE / _SHARDS, thread_count=1)
    save(tensors, storage_writer=writer, process_group=group)


def _own(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this rank writes: parts of all sharded tensors, and its share of the whole ones."""
    names = sorted((name for name in tensors if not is_sharded(tensors[name])), key=lambda name: -tensors[name].nbytes)
    loads = [0] * world.size
    given: list[list[str]] = [[] for _ in loads]
    for name in names:
        rank = loads.index(min(loads))
        loads[rank] += tensors[name].nbytes
        given[rank].append(name)
    chosen = {*given[world.rank], *(name for name in tensors if is_sharded(tensors[name]))}
    return {name: tensor for name, tensor in tensors.items() if name in chosen}


def read_weights(partial: Path) -> dict[str, Tensor]:
    """The trained weights, whole, that several ranks have written under `partial`; on the CPU."""
    reader = FileSystemReader(partial / _STATE / _SHARDS)
    places = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(_OF_WEIGHTS) and isinstance(stored, TensorStorageMetadata)
    }
    _read(reader, places)
    return {name.removeprefix(_OF_WEIGHTS): tensor for name, tensor in places.items()}


def _read(reader: FileSystemReader, places: dict[str, Tensor]) -> None:
    """Fill tensors, or this rank's parts of them; as torch's `load` for one process, which may not run in a thread: it
    changes what is warned of.
    """
    planner, metadata = DefaultLoadPlanner(), reader.read_metadata()
    planner.set_up_planner(places, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    [plan] = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
    [plan] = reader.prepare_global_plan([plan])
    try:
        reader.read_data(planner.finish_plan(plan), planner).wait()
    except RuntimeError as error:  # torch's word for a file that was cut
        raise ValueError(str(error)) from error


def _read_shards(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, placed: Placed
) -> None:
    """Fill what this rank has of weights and states from everybody's files."""
    reader = FileSystemReader(folder / _SHARDS)
    stored = reader.read_metadata().state_dict_metadata
    weights = {name.removeprefix(_OF_WEIGHTS) for name in stored if name.startswith(_OF_WEIGHTS)}
    if odd := sorted(weights ^ parameters.keys()):
        raise ValueError(f"{odd[0]} is trained here or there only")
    _forget_states(folder, parameters, optimizer, len(stored) - len(weights))
    places: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        assert isinstance(tensor, TensorStorageMetadata)
        if name.startswith(_OF_WEIGHTS):
            key = name.removeprefix(_OF_WEIGHTS)
            place = placed(key, parameters[key].data)
        else:
            key, like = name.removeprefix(_OF_MOMENTS), (tuple(tensor.size), tensor.properties.dtype)
            place = _room(key, *like, parameters, optimizer, placed)
        _check_alike(name, place, tensor.properties.dtype, tuple(tensor.size))
        places[name] = place
    _read(reader, places)


def _restore_optimizer(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, placed: Placed = _as_it_is
) -> None:
    """Each state with the dtype, the shape and the bits that it had, on its parameter's device."""
    stored = read_header(folder / _MOMENTS, STATE_DTYPES)
    _forget_states(folder, parameters, optimizer, len(stored))
    for name, tensor in stored.items():
        _fill(_room(name, tensor.shape, tensor.dtype, parameters, optimizer, placed), tensor)


def _forget_states(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, num_tensors: int
) -> None:
    """Make the optimizer ready for `num_tensors` stored tensors; set its plain numbers."""
    record = json.loads((folder / _OPTIMIZER).read_text(encoding="utf-8"))
    if record["class"] != type(optimizer).__name__:
        raise ValueError(f"its optimizer is {record['class']}, not {type(optimizer).__name__}")
    if record["tensors"] != num_tensors:
        raise ValueError(f"it holds {num_tensors} tensors of {record['tensors']} of the optimizer")
    optimizer.state.clear()
    lay_out_states(optimizer)
    for name, number in record["numbers"].items():
        owner, key = _split(name, parameters)
        optimizer.state[owner][key] = number


def _room(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    placed: Placed,
) -> Tensor:
    """The memory that a state is read into; made where the optimizer has not, and divided as its parameter is where it
    has its shape.
    """
    owner, key = _split(name, parameters)
    place, path = optimizer.state[owner].get(key), name.rpartition("/")[0]
    if place is None:
        common = placed(path, owner.data)
        alike = is_sharded(common) and shape == tuple(common.shape)
        place = torch.zeros_like(owner.data, dtype=dtype) if alike else torch.empty(shape, dtype=dtype)
        place = optimizer.state[owner][key] = place.to(owner.device)
    return placed(path, place)


def _split(name: str, parameters: dict[str, nn.Parameter]) -> tuple[nn.Parameter, str]:
    owner, _, key = name.rpartition("/")
    return parameters[owner], key


def _fill(place: Tensor, stored: StoredTensor) -> None:
    _check_alike(stored.name, place, stored.dtype, stored.shape)
    axis, first = local_place(place) if is_sharded(place) else (0, 0)
    read_slice(stored, local(place), axis, first)


def _check_alike(name: str, place: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    here = (place.dtype, tuple(place.shape))
    if (dtype, shape) != here:
        raise ValueError(f"{name} is {dtype} {list(shape)}, expected {here[0]} {list(here[1])}")


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written or half-deleted."""
    for leftover in folder.glob(".*-*"):
        shutil.rmtree(leftover)


def _discard(path: Path) -> None:
    hidden = path.with_name(f".removed-{path.name}")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def _flush(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
