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

import torch
from torch import Tensor, nn

from hanlin.errors import CheckpointError, TrainingError
from hanlin.models.tensorfile import STATE_DTYPES, StoredTensor, read_header, write_tensors
from hanlin.models.transformer import Transformer
from hanlin.training.fit import Fit
from hanlin.training.optim import lay_out_states

FOLDER = "checkpoints"
_STATE = "state"
_WEIGHTS, _PROGRESS = "weights.safetensors", "progress.json"
# Of the optimizer: tensors as "PARAMETER/KEY"; its class, and under the same names what is a plain number.
_MOMENTS, _OPTIMIZER = "moments.safetensors", "optimizer.json"


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
    folder = run / FOLDER
    final, partial = folder / f"step-{progress.step:06d}", folder / f".partial-{progress.step:06d}"
    try:
        _sweep(folder)
        state = partial / _STATE
        state.mkdir(parents=True)
        write_model(partial)
        _write_state(state, model, optimizer)
        (state / _PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if final.exists():
            _discard(final)
        os.replace(partial, final)
        _flush(folder)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {final} could not be written ({failure_reason(error)}): free space or choose another "
            f"output.directory; "
            "earlier checkpoints are untouched, go on from them with --resume"
        ) from None
    for old in checkpoints(run)[:-keep_last]:
        _discard(old)
    return final


def restore_checkpoint(path: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill the trained weights and the optimizer's states from a checkpoint; return how far it is.

    Raises CheckpointError where it is damaged, or belongs to another model or optimizer.
    """
    state = path / _STATE
    try:
        saved = json.loads((state / _PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(**{**saved, "fit": Fit(**saved["fit"])})
        parameters = _trained(model)
        stored = read_header(state / _WEIGHTS)
        if odd := sorted(stored.keys() ^ parameters.keys()):
            raise ValueError(f"{odd[0]} is trained here or there only")
        for name, tensor in stored.items():
            _fill(parameters[name].data, tensor)
        _restore_optimizer(state, parameters, optimizer)
    except (OSError, CheckpointError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): remove it and --resume goes on from the checkpoint before it"
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
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{name}/{key}"] = value
    # The widest first, so that each lies at a multiple of its size: readers map the file.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    write_tensors(folder / _MOMENTS, ordered, None)
    record = {"class": type(optimizer).__name__, "tensors": len(tensors), "numbers": numbers}
    (folder / _OPTIMIZER).write_text(json.dumps(record), encoding="utf-8")


def _restore_optimizer(folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Each state with the dtype, the shape and the bits that it had, on its parameter's device."""
    record = json.loads((folder / _OPTIMIZER).read_text(encoding="utf-8"))
    stored = read_header(folder / _MOMENTS, STATE_DTYPES)
    if record["class"] != type(optimizer).__name__:
        raise ValueError(f"its optimizer is {record['class']}, not {type(optimizer).__name__}")
    if record["tensors"] != len(stored):
        raise ValueError(f"{_MOMENTS} holds {len(stored)} tensors of {record['tensors']}")
    optimizer.state.clear()
    lay_out_states(optimizer)
    for name, number in record["numbers"].items():
        owner, key = _split(name, parameters)
        optimizer.state[owner][key] = number
    for name, tensor in stored.items():
        owner, key = _split(name, parameters)
        place = optimizer.state[owner].get(key)
        if place is None:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, device=owner.device)
            optimizer.state[owner][key] = place
        _fill(place, tensor)


def _split(name: str, parameters: dict[str, nn.Parameter]) -> tuple[nn.Parameter, str]:
    owner, _, key = name.rpartition("/")
    return parameters[owner], key


def _fill(place: Tensor, stored: StoredTensor) -> None:
    there, here = (stored.dtype, stored.shape), (place.dtype, tuple(place.shape))
    if there != here:
        raise ValueError(f"{stored.name} is {there[0]} {list(there[1])}, expected {here[0]} {list(here[1])}")
    stored.copy_to(place)


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
