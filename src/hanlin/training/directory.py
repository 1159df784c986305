"""The directory of a run: where it is, whether it may be used, and how it is written to."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hanlin.config import load_recipe
from hanlin.errors import CheckpointError, ConfigError, TrainingError
from hanlin.models.parts import WHOLE, Part
from hanlin.models.transformer import Transformer
from hanlin.models.weights import count_parameters
from hanlin.training.checkpoint import failure_reason
from hanlin.training.optim import STATE_BYTES
from hanlin.training.recipe import Recipe
from hanlin.training.runs import RECIPE

# What may change between a run and its resumption without changing its numbers.
_FREE_TO_CHANGE = ("evaluate_every", "save_every", "keep_last", "cache", "kl_limit", "cut_limit")


def run_directory(recipe: Recipe, recipe_path: Path) -> Path:
    """Where the run goes: the recipe's [output], else runs/NAME-OF-THE-RECIPE."""
    return Path(recipe.output.directory) if recipe.output.directory else Path("runs") / recipe_path.stem


def is_finished(directory: Path, recipe: Recipe) -> bool:
    """Whether this recipe's run is already done; raises ConfigError where another recipe's is."""
    finished = (directory / "config.json").exists()
    if finished:
        same_recipe(directory / RECIPE, recipe)
    return finished


def same_recipe(saved: Path, recipe: Recipe) -> None:
    """Resuming under another recipe would be another run: name what differs."""
    before, now = _binding(load_recipe(Recipe, saved)), _binding(recipe)
    differing = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in before | now if before.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigError(f"the run in {saved.parent} began with another recipe: {'; '.join(differing)}")


def _binding(recipe: Recipe) -> dict[str, object]:
    """What must stay as it is until a run is done, by dotted key; a section that is left out has no keys."""
    sections = recipe.model_dump(exclude={"output", "track", "parallel"}).items()
    flat = {(section, key): value for section, values in sections for key, value in (values or {}).items()}
    return {f"{section}.{key}": value for (section, key), value in flat.items() if key not in _FREE_TO_CHANGE}


def refuse_overwriting(directory: Path, found: Sequence[Path]) -> None:
    if (directory / "config.json").exists():
        raise ConfigError(f"{directory} holds a finished model: set output.directory to a new place")
    if found:
        raise ConfigError(
            f"{directory} holds a run that came to {found[-1].name}: go on with --resume, or set output.directory to a "
            "new place"
        )


def create(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output.directory {directory} cannot be written ({error.strerror}); choose another"
        ) from None


def note_lack_of_space(
    directory: Path, recipe: Recipe, model: Transformer, on_note: Callable[[str], None], part: Part = WHOLE
) -> None:
    """The last step has no checkpoint: what a disk that fills at the end would cost is said before the first."""
    training, size = recipe.training, 4 if recipe.output.save_dtype == "float32" else 2
    finished, state = (
        size * count_parameters(part.widened(model.config)),
        0.0,
    )  # four bits are unpacked, adapters merged
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state += part.share(name) * parameter.numel() * (parameter.itemsize + STATE_BYTES[training.optimizer])
    copies = training.keep_last + 1 if training.save_every else 0  # the newest is written before the oldest goes
    needed, free = finished + copies * (finished + state), shutil.disk_usage(directory).free
    if free < needed:
        on_note(
            f"{directory} has {free / 1e9:.1f} GB free, and the run writes up to {needed / 1e9:.1f} GB: the finished "
            f"model {finished / 1e9:.1f}, {copies} checkpoints of {(finished + state) / 1e9:.1f}. Free space, lower "
            "training.keep_last, or set output.directory to another disk"
        )


@contextmanager
def saving(directory: Path) -> Iterator[None]:
    """Turns a full disk into one line with the next step."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        reason = failure_reason(error)
        raise TrainingError(f"{directory} cannot be written ({reason}): free space, then go on with --resume") from None


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
