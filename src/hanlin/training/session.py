"""From a recipe to a run: opens the model and the data, decides where the run lives, trains, and leaves a finished
model directory.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hanlin.config import dump_toml, load_recipe
from hanlin.data.budget import streams
from hanlin.data.loader import Order
from hanlin.data.prepare import PreparedData
from hanlin.errors import CheckpointError, ConfigError, TemplateError, TrainingError
from hanlin.models.adapters import save_adapter, text_place
from hanlin.models.fetch import cache_directory, resolve
from hanlin.models.transformer import Transformer
from hanlin.models.untrained import initialise_rows, untrained_in
from hanlin.models.weights import count_parameters, load_model, pick_device, save_model, write_generation_config
from hanlin.text.audit import audit, choose_format, side_by_side
from hanlin.text.chat import ChatFormat, named_format
from hanlin.text.encode import check_vocabulary, control_ids, stop_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.allocator import settle_memory
from hanlin.training.card import model_card
from hanlin.training.checkpoint import (
    Progress,
    checkpoints,
    failure_reason,
    model_in,
    restore_checkpoint,
    save_checkpoint,
)
from hanlin.training.fit import measure_fit
from hanlin.training.learning import check_runs_here, place_to_load, settle_learning
from hanlin.training.loop import evaluate, run
from hanlin.training.metrics import Diary, MetricsLog, Samples, plot_metrics
from hanlin.training.objective import Objective, objective_of
from hanlin.training.optim import STATE_BYTES, make_optimizer
from hanlin.training.recipe import ChatSection, Recipe
from hanlin.training.rollout import Rollouts
from hanlin.training.runs import running
from hanlin.training.trackers import Look, check_trackers, open_trackers
from hanlin.training.work import Job, Observer, count_steps

RECIPE = "recipe.toml"
# What may change between a run and its resumption without changing its numbers.
_FREE_TO_CHANGE = ("evaluate_every", "save_every", "keep_last", "cache", "kl_limit", "cut_limit")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Material:
    """What a recipe names, opened, all but the weights: enough for a dry run."""

    recipe: Recipe
    source: Path
    tokenizer: Tokenizer
    format: ChatFormat
    data: PreparedData
    objective: Objective[Any]

    @property
    def order(self) -> Order:
        config = self.recipe.training
        return self.objective.arrange(
            self.data,
            batch=config.batch_pairs,
            epochs=config.epochs,
            steps=config.steps,
            seed=config.seed,
            shuffle=self.recipe.data.shuffle,
        )

    @property
    def num_steps(self) -> int:
        return count_steps(self.order, self.data.train, self.recipe.training, noun=self.objective.noun)


def open_material(recipe: Recipe, *, on_note: Callable[[str], None] = _log.warning) -> Material:
    """Resolve the model, open its tokenizer, settle the chat format and prepare the data."""
    check_trackers(recipe.track)
    source = model_in(resolve(recipe.model.path))
    tokenizer = Tokenizer.open(text_place(source))
    format = settle_format(tokenizer, recipe.chat, on_note=on_note)
    cache = cache_directory() / "tokens" if recipe.data.cache else None
    objective = objective_of(recipe.objective)
    system = recipe.chat.system
    data = objective.prepare(recipe.data, format, tokenizer, system=system, cache=cache, on_note=on_note)
    return Material(recipe, source, tokenizer, format, data, objective)


def settle_format(tokenizer: Tokenizer, chat: ChatSection, *, on_note: Callable[[str], None]) -> ChatFormat:
    """The format to train with; a disagreement with the checkpoint's own template is an error unless the recipe takes a
    side.
    """
    format = named_format(chat.format) if chat.format else choose_format(tokenizer, date=chat.date)
    if chat.date is not None:
        format = replace(format, date=chat.date)
    result = audit(format, tokenizer, date=chat.date)
    if result.missing_template:
        on_note(f"the checkpoint has no chat template: using the {format.name} format")
    elif not result.clean and chat.follow is None:
        raise TemplateError(
            f"the checkpoint's chat template and the {format.name} format "
            f"disagree:\n{side_by_side(result.differences[0])}\n"
            'Say chat.follow = "format" to train with ours (it is saved as the template), or choose another chat.format'
        )
    elif not result.clean and chat.follow == "template":
        raise TemplateError(
            f'chat.follow = "template" needs a format that renders as the checkpoint\'s template does; {format.name} '
            f"does not, and no other "
            "known one does: choose chat.format, or write the checkpoint's template as a format"
        )
    return format


class Session:
    """One training run on disk and in memory: `Session(material, directory)`, then `train`."""

    def __init__(
        self, material: Material, directory: Path, *, resume: bool, on_note: Callable[[str], None] = _log.warning
    ) -> None:
        """Load the weights, and the newest checkpoint where `resume` says so."""
        self.material, self.directory, self._on_note = material, directory, on_note
        recipe = material.recipe
        found = checkpoints(directory)
        if resume and found:
            _same_recipe(directory / RECIPE, recipe)
        _refuse_overwriting(directory, [] if resume else found)
        _create(directory)
        check_runs_here(recipe, pick_device(recipe.training.device))
        settle_memory()
        self.model = load_training_model(material, on_note=on_note)
        self.optimizer = make_optimizer(self.model, recipe.training)
        self.rollouts = self._explore()
        self.progress = Progress(
            data=material.data.fingerprint,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            fit=measure_fit(self.model, recipe.training, material.data.typical, material.objective.scored_share),
        )
        self.data = self._with_reference(material.data)
        if resume and found:
            self.progress = self._restore(found[-1], on_note)
        elif resume:
            on_note(f"{directory} holds no checkpoint: starting from the beginning")
        self.progress.fit.apply(self.model)
        if not found:
            _note_lack_of_space(directory, recipe, self.model, on_note)
        with _saving(directory):
            _write_atomically(directory / RECIPE, dump_toml(recipe))

    def _with_reference(self, data: PreparedData) -> PreparedData:
        """The data with what the starting model says of it, where the objective asks: before any weight is restored."""
        objective = self.material.objective
        if objective.refer is None:
            return data
        self.progress.fit.apply(self.model)

        def known(examples: Sequence[Any]) -> Sequence[Any]:
            budget = self.material.recipe.training.tokens_per_pass
            assert objective.pack_scored is not None
            packed = streams(examples, objective.pack_scored, max_tokens=budget)
            return objective.refer(self.model, examples, packed) if objective.refer and examples else examples

        return replace(data, train=known(data.train), held_out=known(data.held_out))

    def _explore(self) -> Rollouts | None:
        """What samples answers, where the objective learns from them: before any weight is restored."""
        if (explore := self.material.objective.explore) is None:
            return None
        material, training = self.material, self.material.recipe.training
        given, budget = (self.model, material.tokenizer, material.format), training.tokens_per_pass
        return explore(*given, seed=training.seed, tokens_per_pass=budget, on_note=self._on_note)

    def _restore(self, path: Path, on_note: Callable[[str], None]) -> Progress:
        here = self.progress
        saved = restore_checkpoint(path, self.model, self.optimizer)
        if saved.data != here.data:
            raise ConfigError(
                f"{path} was trained on other data than the recipe names now: the run cannot go on with it"
            )
        if (saved.threads, saved.torch) != (here.threads, here.torch):
            on_note(
                f"resumed with {here.threads} threads and torch {here.torch} instead of {saved.threads} and "
                f"{saved.torch}: "
                "equal to the uninterrupted run up to rounding, not bit for bit"
            )
        return saved

    def evaluate(self) -> list[Any]:
        """Scores of the held-out examples under the weights as they are."""
        training, objective = self.material.recipe.training, self.material.objective
        return evaluate(self.model, self.data.held_out, training, objective=objective, rollouts=self.rollouts)

    def train(self, observer: Observer | None = None, *, look: Look | None = None) -> bool:
        """Score the held-out examples, run to the last step, score again; False when interrupted (a checkpoint is saved
        then). `look` asks the model what [track] wants to see.
        """
        recipe, data, objective = self.material.recipe, self.data, self.material.objective
        job = Job(
            model=self.model,
            optimizer=self.optimizer,
            train=data.train,
            held_out=data.held_out,
            objective=objective,
            config=recipe.training,
            num_steps=self.material.num_steps,
            order=self.material.order,
            save=self._save,
            rollouts=self.rollouts,
        )
        with self._diary(observer, look) as diary:
            if self.progress.step == 0:
                if data.held_out:
                    diary.evaluated(self.progress, self.evaluate())
                diary.sample(self.progress)
            self.progress = run(job, self.progress, diary)
            if self.progress.step < job.num_steps:
                return False
            if data.held_out:
                diary.evaluated(self.progress, self.evaluate())
            diary.sample(self.progress)
        return True

    @contextmanager
    def _diary(self, observer: Observer | None, look: Look | None) -> Iterator[Diary]:
        """What writes the run down, and tells the trackers that the recipe names."""
        recipe, directory, note, step = self.material.recipe, self.directory, self._on_note, self.progress.step
        log = MetricsLog(directory, first_step=step)
        settings = recipe.model_dump(mode="json")
        trackers = open_trackers(recipe.track, directory, settings, first_step=step, on_note=note)
        samples = None
        if look is not None and recipe.track.samples:
            samples = Samples(directory, look, self.model, trackers=trackers, first_step=step, on_note=note)
        every = recipe.training.evaluate_every
        summarise = self.material.objective.summarise
        try:
            with running(directory):
                yield Diary(log, observer, summarise, trackers=trackers, samples=samples, sample_every=every)
        finally:
            for tracker in trackers:
                tracker.close()

    def finish(self, *, results: str = "") -> None:
        """Make the run directory a model directory: weights, tokenizer, template, card (with `results`, Markdown),
        plot.
        """
        with _saving(self.directory):
            plot_metrics(self.directory)
            self.write_model(self.directory, results=results)  # config.json last of all: a run that has it is finished

    def _save(self, progress: Progress) -> Path:
        keep = self.material.recipe.training.keep_last
        return save_checkpoint(
            self.directory, progress, self.model, self.optimizer, write_model=self.write_model, keep_last=keep
        )

    def write_model(self, directory: Path, *, results: str = "") -> None:
        """Write the model as a Hugging Face directory with tokenizer, template, stop ids, recipe and model card."""
        material = self.material
        tokenizer, format = material.tokenizer, material.format
        stops = stop_ids(format, tokenizer)
        follows_own = material.recipe.chat.follow == "format" or tokenizer.chat_template is None
        template = format.jinja() if follows_own else tokenizer.chat_template
        tokenizer.save(directory, chat_template=template, eos=format.stop)
        pad_id = tokenizer.pad_id
        if self.model.score is not None and pad_id in (None, tokenizer.id(format.stop)):
            pad_id = tokenizer.id(format.other_stops[-1])  # transformers reads a row before its padding, so at its stop
        ids = {"bos_id": tokenizer.bos_id, "pad_id": pad_id}
        write_generation_config(directory, eos_ids=stops, **ids, temperature=0.6, top_p=0.9)
        _write_atomically(directory / RECIPE, dump_toml(material.recipe))
        _write_atomically(directory / "README.md", model_card(material.recipe, results=results))
        if (lora := material.recipe.lora) is not None and self.model.score is None:
            local = Path(material.recipe.model.path).exists()
            base = str(material.source.resolve()) if local else material.recipe.model.path
            save_adapter(self.model, directory / "adapter", lora, base=base)
        save_model(self.model, directory, dtype=material.recipe.output.save_dtype, eos_ids=stops, **ids)


def load_training_model(material: Material, *, on_note: Callable[[str], None]) -> Transformer:
    """Weights in the recipe's dtype on its device, with fresh adapters where it has [lora]; matmuls in the recipe's
    compute dtype.
    """
    section, device = material.recipe.model, pick_device(material.recipe.training.device)
    place = place_to_load(material.recipe, device)
    model = load_model(material.source, dtype=section.dtype, device=place, on_note=on_note)
    check_vocabulary(material.tokenizer, model.config.vocab_size)
    model.compute_dtype = torch.float32 if section.compute == "float32" else torch.bfloat16
    settle_rows(model, material, on_note=on_note)
    settle_learning(model, material.recipe, device)
    if material.objective.adopt is not None:
        material.objective.adopt(model, material.recipe.training.seed)
    return model


def settle_rows(model: Transformer, material: Material, *, on_note: Callable[[str], None]) -> None:
    """Give untrained rows of the chat format's control pieces a start, unless the recipe keeps them; say so."""
    control = control_ids(material.format, material.tokenizer)
    untrained = untrained_in(model, list(control.values()))
    for matrix, ids in untrained.items():
        pieces = ", ".join(piece for piece, id in control.items() if id in ids)
        keep = material.recipe.model.untrained_rows == "keep"
        said = "kept as they are" if keep else "now the mean of the trained rows"
        on_note(f"{matrix} has untrained rows for {pieces}: {said} (model.untrained_rows)")
    if material.recipe.model.untrained_rows == "mean":
        initialise_rows(model, untrained)


def run_directory(recipe: Recipe, recipe_path: Path) -> Path:
    """Where the run goes: the recipe's [output], else runs/NAME-OF-THE-RECIPE."""
    return Path(recipe.output.directory) if recipe.output.directory else Path("runs") / recipe_path.stem


def is_finished(directory: Path, recipe: Recipe) -> bool:
    """Whether this recipe's run is already done; raises ConfigError where another recipe's is."""
    finished = (directory / "config.json").exists()
    if finished:
        _same_recipe(directory / RECIPE, recipe)
    return finished


def _same_recipe(saved: Path, recipe: Recipe) -> None:
    """Resuming under another recipe would be another run: name what differs."""
    before, now = _binding(load_recipe(Recipe, saved)), _binding(recipe)
    differing = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in before | now if before.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigError(f"the run in {saved.parent} began with another recipe: {'; '.join(differing)}")


def _binding(recipe: Recipe) -> dict[str, object]:
    """What must stay as it is until a run is done, by dotted key; a section that is left out has no keys."""
    sections = recipe.model_dump(exclude={"output", "track"}).items()
    flat = {(section, key): value for section, values in sections for key, value in (values or {}).items()}
    return {f"{section}.{key}": value for (section, key), value in flat.items() if key not in _FREE_TO_CHANGE}


def _refuse_overwriting(directory: Path, found: Sequence[Path]) -> None:
    if (directory / "config.json").exists():
        raise ConfigError(f"{directory} holds a finished model: set output.directory to a new place")
    if found:
        raise ConfigError(
            f"{directory} holds a run that came to {found[-1].name}: go on with --resume, or set output.directory to a "
            "new place"
        )


def _create(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output.directory {directory} cannot be written ({error.strerror}); choose another"
        ) from None


def _note_lack_of_space(directory: Path, recipe: Recipe, model: Transformer, on_note: Callable[[str], None]) -> None:
    """The last step has no checkpoint: what a disk that fills at the end would cost is said before the first."""
    training, size = recipe.training, 4 if recipe.output.save_dtype == "float32" else 2
    finished, state = size * count_parameters(model.config), 0.0  # four bits are unpacked, adapters merged
    for parameter in model.parameters():
        if parameter.requires_grad:
            state += parameter.numel() * (parameter.itemsize + STATE_BYTES[training.optimizer])
    copies = training.keep_last + 1 if training.save_every else 0  # the newest is written before the oldest goes
    needed, free = finished + copies * (finished + state), shutil.disk_usage(directory).free
    if free < needed:
        on_note(
            f"{directory} has {free / 1e9:.1f} GB free, and the run writes up to {needed / 1e9:.1f} GB: the finished "
            f"model {finished / 1e9:.1f}, {copies} checkpoints of {(finished + state) / 1e9:.1f}. Free space, lower "
            "training.keep_last, or set output.directory to another disk"
        )


@contextmanager
def _saving(directory: Path) -> Iterator[None]:
    """Turns a full disk into one line with the next step."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        reason = failure_reason(error)
        raise TrainingError(f"{directory} cannot be written ({reason}): free space, then go on with --resume") from None


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
