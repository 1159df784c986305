"""Checkpoints: a Hugging Face directory + `state/` + `recipe.toml`, written whole or not at all.

    RUN/recipe.toml  metrics.jsonl  metrics.png            the run's own files
    RUN/config.json  model.safetensors  tokenizer.json …   the finished model: a run directory is a model directory
    RUN/checkpoints/step-000120/                           the same files plus state/, enough to go on bit for bit

`state/` holds the fp32 master weights, the optimizer's moments and one integer. A checkpoint is written under a hidden
name, flushed to the disk and renamed; one that goes is renamed to a hidden name before it is deleted. What has a
visible name is whole.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hanlin.errors import CheckpointError, TrainingError
from hanlin.models.tensorfile import write_tensors
from hanlin.models.transformer import Transformer

FOLDER = "checkpoints"
_STATE = "state"
_WEIGHTS, _MOMENTS, _PROGRESS = "weights.safetensors", "moments.safetensors", "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is: optimizer steps done, stream tokens and pairs seen. `data` is the fingerprint of what it trains
    on.
    """

    step: int = 0
    pairs: int = 0
    tokens: int = 0
    data: str = ""
    threads: int = 0
    torch: str = ""


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
        weights = {name: parameter.data for name, parameter in model.named_parameters()}
        write_tensors(state / _WEIGHTS, weights, next(iter(weights.values())).dtype)
        write_tensors(state / _MOMENTS, _moments(model, optimizer), torch.float32)
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
    """Fill the model's weights and the optimizer's moments from a checkpoint; return how far it is."""
    state = path / _STATE
    try:
        progress = Progress(**json.loads((state / _PROGRESS).read_text(encoding="utf-8")))
        with safe_open(state / _WEIGHTS, framework="pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(name))
        with safe_open(state / _MOMENTS, framework="pt") as file:
            for name, parameter in model.named_parameters():
                first, second = file.get_tensor(f"{name}/first"), file.get_tensor(f"{name}/second")
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(progress.step), device=parameter.device),
                    "exp_avg": first.to(parameter.device, parameter.dtype),
                    "exp_avg_sq": second.to(parameter.device, parameter.dtype),
                }
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): remove it and --resume goes on from the checkpoint before it"
        ) from None
    return progress


def failure_reason(error: OSError | CheckpointError) -> str:
    """What the system said: the rooms that write a model's files wrap it into a message of their own."""
    cause = error.__context__ if isinstance(error, CheckpointError) else error
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error)


def _moments(model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors[f"{name}/first"], tensors[f"{name}/second"] = state["exp_avg"], state["exp_avg_sq"]
    return tensors


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
