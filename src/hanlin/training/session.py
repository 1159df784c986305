"""From a recipe to a run: opens the model and the data, decides where the run lives, trains, and leaves a finished
model directory.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanlin.config import dump_toml
from hanlin.data.prepare import PreparedData
from hanlin.errors import ConfigError
from hanlin.models.adapters import save_adapter
from hanlin.models.parts import part_of
from hanlin.models.transformer import Transformer
from hanlin.models.weights import Checkpoint, open_language_model, pick_device, save_model, write_generation_config
from hanlin.text.encode import stop_ids
from hanlin.training.allocator import settle_memory
from hanlin.training.card import model_card
from hanlin.training.checkpoint import Progress, checkpoints, restore_checkpoint, save_checkpoint
from hanlin.training.directory import (
    create,
    note_lack_of_space,
    refuse_overwriting,
    same_recipe,
    saving,
    write_atomically,
)
from hanlin.training.directory import is_finished as is_finished
from hanlin.training.directory import run_directory as run_directory
from hanlin.training.division import Division
from hanlin.training.fit import measure_fit
from hanlin.training.learning import beyond_context, check_model, check_runs_here
from hanlin.training.loop import evaluate, run
from hanlin.training.material import Material as Material
from hanlin.training.material import load_training_model as load_training_model
from hanlin.training.material import open_material as open_material
from hanlin.training.material import outline_training_model, read_training_model
from hanlin.training.metrics import Diary, MetricsLog, Samples, Silence, plot_metrics
from hanlin.training.optim import SHARDABLE, STATE_BYTES, make_optimizer
from hanlin.training.parallel import ALONE, World, put_away
from hanlin.training.recipe import Recipe
from hanlin.training.rollout import Rollouts
from hanlin.training.runs import RECIPE, running
from hanlin.training.saving import Saver, Twin
from hanlin.training.shares import Noted, shared_streams, together
from hanlin.training.trackers import Look, open_trackers
from hanlin.training.work import Job, Observer

_log = logging.getLogger(__name__)


def check_sharded(recipe: Recipe, num_ranks: int) -> None:
    """Raise ConfigError for what needs whole weights on every rank, before any is read."""
    with_shards = 'does not go with weights that are sharded over the ranks (parallel.shard = "full")'
    if (name := recipe.training.optimizer) not in SHARDABLE:
        instead = "adamw_bf16" if recipe.model.dtype == "bfloat16" and recipe.lora is None else "adamw"
        raise ConfigError(
            f'training.optimizer = "{name}" {with_shards}: bitsandbytes knows whole tensors only. Use '
            f'training.optimizer = "{instead}", whose states are divided too: {STATE_BYTES[instead] / num_ranks:.2g} '
            f'bytes a parameter on each of {num_ranks} ranks; or set parallel.shard = "none"'
        )
    if recipe.track.samples:
        raise ConfigError(
            f'track.samples = {recipe.track.samples} {with_shards}: leave it out, or set parallel.shard = "none"'
        )


class Session:
    """One training run on disk and in memory: `Session(material, directory)`, then `train`."""

    def __init__(
        self,
        material: Material,
        directory: Path,
        *,
        resume: bool,
        on_note: Callable[[str], None] = _log.warning,
        world: World = ALONE,
    ) -> None:
        """Load the weights, and the newest checkpoint where `resume` says so."""
        self.material, self.directory, self._on_note, self.world = material, directory, on_note, world
        recipe = material.recipe
        if world.sharded:
            check_sharded(recipe, world.size)
        found = world.agree(checkpoints(directory))
        if resume and found:
            same_recipe(directory / RECIPE, recipe)
        refuse_overwriting(directory, [] if resume else found)
        world.wait()  # nobody looks at the directory any more
        if world.speaks:
            create(directory)
        device = pick_device(recipe.training.device)
        check_runs_here(recipe, device, ranks=world.size)
        checkpoint = open_language_model(material.source)
        check_model(recipe, checkpoint.config, device)
        if beyond := beyond_context(material.data.typical, checkpoint.config):
            if material.objective.explore is not None:  # the engine keeps to the context
                raise ConfigError(beyond)
            on_note(beyond)
        settle_memory()
        self._load(checkpoint)
        self.rollouts = self._explore()
        examples, share = material.data.typical, material.objective.scored_share
        of = {"num_local": world.num_local, "part": self.division.part}
        fit = measure_fit(self.model, recipe.training, examples, share, **of)
        self.progress = Progress(
            data=material.data.fingerprint,
            threads=torch.get_num_threads(),
            ranks=world.size,
            torch=str(torch.__version__),
            fit=world.agree(fit),
        )
        self.data = self._with_reference(material.data)
        if resume and found:
            self.progress = self._restore(found[-1], on_note)
        elif resume:
            on_note(f"{directory} holds no checkpoint: starting from the beginning")
        self.progress.fit.apply(self.model)
        if not world.speaks:
            return
        if not found:
            note_lack_of_space(directory, recipe, self.model, on_note, self.division.part)
        with saving(directory):
            write_atomically(directory / RECIPE, dump_toml(recipe))

    def _load(self, checkpoint: Checkpoint) -> None:
        """The model, on its device and divided over the ranks where they share it; its optimizer; what saves both."""
        material, world, training = self.material, self.world, self.material.recipe.training
        self.division = division = Division(world, part_of(checkpoint.config, world.team.rank, world.team.size))
        self.model = outline_training_model(material, checkpoint, division, on_note=self._on_note)
        self._twin = Twin(self.model, division) if world.size > 1 else None
        division.spread(self.model, pick_device(training.device))
        read_training_model(self.model, material, checkpoint, division, on_note=self._on_note)
        self.optimizer = make_optimizer(self.model, training)
        self._saver = None
        if self._twin is not None:
            given = {"division": division, "write_model": self.write_model, "keep_last": training.keep_last}
            self._saver = Saver(self.directory, self.model, self.optimizer, twin=self._twin, **given)

    def _with_reference(self, data: PreparedData) -> PreparedData:
        """The data with what the starting model says of it, where the objective asks: before any weight is restored."""
        objective = self.material.objective
        if objective.refer is None:
            return data
        self.progress.fit.apply(self.model)

        def known(examples: Sequence[Any]) -> Sequence[Any]:
            if objective.refer is None or not examples:
                return examples
            budget = self.material.recipe.training.tokens_per_pass
            assert objective.pack_scored is not None
            packed = Noted(shared_streams(examples, objective.pack_scored, self.world.data, max_tokens=budget))
            referred = objective.refer(self.model, examples, packed)
            put_away(self.model)
            return together(self.world.data, ((index, referred[index]) for index in packed.indices))

        return replace(data, train=known(data.train), held_out=known(data.held_out))

    def _explore(self) -> Rollouts | None:
        """What samples answers, where the objective learns from them: before any weight is restored."""
        if (explore := self.material.objective.explore) is None:
            return None
        material, training = self.material, self.material.recipe.training
        given, budget = (self.model, material.tokenizer, material.format), training.tokens_per_pass
        own = {"division": self.division, "on_note": self._on_note}
        return explore(*given, seed=training.seed, tokens_per_pass=budget, **own)

    def _restore(self, path: Path, on_note: Callable[[str], None]) -> Progress:
        here = self.progress
        saved = restore_checkpoint(path, self.model, self.optimizer, self.division.placed)
        if saved.data != here.data:
            raise ConfigError(
                f"{path} was trained on other data than the recipe names now: the run cannot go on with it"
            )
        if (saved.threads, saved.ranks, saved.torch) != (here.threads, here.ranks, here.torch):
            now, before = (
                f"{one.threads} threads{f' on {one.ranks} ranks' if here.ranks != saved.ranks else ''} and torch "
                f"{one.torch}"
                for one in (here, saved)
            )
            equal = "equal to the uninterrupted run up to rounding, not bit for bit"
            on_note(f"resumed with {now} instead of {before}: {equal}")
        return replace(saved, threads=here.threads, ranks=here.ranks, torch=here.torch)

    def evaluate(self) -> list[Any]:
        """Scores of the held-out examples under the weights as they are."""
        training, objective = self.material.recipe.training, self.material.objective
        own = {"objective": objective, "rollouts": self.rollouts, "world": self.world}
        return evaluate(self.model, self.data.held_out, training, **own)

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
            save=self.save,
            rollouts=self.rollouts,
            world=self.world,
            part=self.division.part,
        )
        if self._saver is not None and recipe.training.save_every:
            self._saver.warm_up()
        with self._diary(observer, look) as diary:
            if self.progress.step == 0:
                if data.held_out:
                    diary.evaluated(self.progress, self.evaluate())
                diary.sample(self.progress)
            self.progress = run(job, self.progress, diary)
            self.settle()
            if self.progress.step < job.num_steps:
                return False
            if data.held_out:
                diary.evaluated(self.progress, self.evaluate())
            diary.sample(self.progress)
        return True

    @contextmanager
    def _diary(self, observer: Observer | None, look: Look | None) -> Iterator[Diary | Silence]:
        """What writes the run down, and tells the trackers that the recipe names; one rank does."""
        if not self.world.speaks:
            yield Silence()
            return
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
        model = self.model if self._twin is None else self._twin.gather(self.model)
        if self.world.speaks and model is not None:
            with saving(self.directory):
                plot_metrics(self.directory)
                # config.json last of all: a run that has it is finished
                self.write_model(self.directory, model, results=results)
        self.world.wait()

    def save(self, progress: Progress, on_saved: Callable[[Path], None]) -> Path:
        """Write a checkpoint, or begin to; `on_saved` is told when it is whole. Returns where it lies."""
        if self._saver is not None:
            return self._saver.save(progress, on_saved)

        def write_model(directory: Path) -> None:
            self.write_model(directory, self.model)

        keep = self.material.recipe.training.keep_last
        path = save_checkpoint(
            self.directory, progress, self.model, self.optimizer, write_model=write_model, keep_last=keep
        )
        on_saved(path)
        return path

    def settle(self) -> None:
        """Wait until the last checkpoint is whole."""
        if self._saver is not None:
            self._saver.settle()

    def write_model(self, directory: Path, model: Transformer, *, results: str = "") -> None:
        """Write a model as a Hugging Face directory with tokenizer, template, stop ids, recipe and model card."""
        material = self.material
        tokenizer, format = material.tokenizer, material.format
        stops = stop_ids(format, tokenizer)
        follows_own = material.recipe.chat.follow == "format" or tokenizer.chat_template is None
        template = format.jinja() if follows_own else tokenizer.chat_template
        tokenizer.save(directory, chat_template=template, eos=format.stop)
        pad_id = tokenizer.pad_id
        if model.score is not None and pad_id in (None, tokenizer.id(format.stop)):
            pad_id = tokenizer.id(format.other_stops[-1])  # transformers reads a row before its padding, so at its stop
        ids = {"bos_id": tokenizer.bos_id, "pad_id": pad_id}
        write_generation_config(directory, eos_ids=stops, **ids, temperature=0.6, top_p=0.9)
        write_atomically(directory / RECIPE, dump_toml(material.recipe))
        write_atomically(directory / "README.md", model_card(material.recipe, results=results))
        if (lora := material.recipe.lora) is not None and model.score is None:
            local = Path(material.recipe.model.path).exists()
            base = str(material.source.resolve()) if local else material.recipe.model.path
            save_adapter(model, directory / "adapter", lora, base=base)
        save_model(model, directory, dtype=material.recipe.output.save_dtype, eos_ids=stops, **ids)
