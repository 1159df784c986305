"""`hanlin train`: run a recipe, resume a run, or only say what it would cost."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanlin.cli.console import downloading, note, out, show_logs
from hanlin.cli.overrides import Overrides
from hanlin.errors import ConfigError, HanlinError

if TYPE_CHECKING:
    from hanlin.training.checkpoint import Progress
    from hanlin.training.objective import Objective
    from hanlin.training.parallel import World
    from hanlin.training.recipe import Recipe
    from hanlin.training.session import Material, Session

INTERRUPTED = 130  # what a shell says of Ctrl-C


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (.toml); see recipes/. 训练配方")] = None,
    set: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint. 从最近的检查点继续")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read and count everything; print steps, time and memory; train nothing. 只检查不训练"
        ),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors, and exit.")
    ] = False,
) -> None:
    """Tune a model with a recipe. 按配方微调模型。"""
    from hanlin.config import json_schema, load_recipe
    from hanlin.training.recipe import Recipe

    show_logs()
    if schema:
        out.print_json(data=json_schema(Recipe))
        return
    if recipe is None:
        raise ConfigError("no recipe was named: hanlin train RECIPE.toml; some come with Hanlin, in recipes/")
    resolved = load_recipe(Recipe, recipe, set or [])

    from hanlin.training.parallel import joined, recorded

    def as_rank() -> int:
        with joined(resolved.parallel, resolved.training.device) as world:
            try:
                return _train(resolved, recipe, world, resume=resume, dry_run=dry_run)
            except HanlinError as error:
                if world.speaks:
                    raise
                raise type(error)(f"rank {world.rank}: {error}") from None

    if status := recorded(as_rank):
        raise typer.Exit(status)


def _train(recipe: "Recipe", path: Path, world: "World", *, resume: bool, dry_run: bool) -> int:
    """What each rank does: all compute, one speaks. The exit status."""
    from hanlin.api import locate
    from hanlin.training.session import Session, is_finished, open_material, run_directory

    say = note if world.speaks else _nothing
    with world.first_of_machine():
        with downloading() if world.speaks else nullcontext() as on_progress:
            locate(recipe.model.path, on_progress=on_progress)
        material = open_material(recipe, on_note=say)
    if world.speaks:
        say_what_was_dropped(material)
        if dry_run:
            print_plan(material)
    if dry_run:
        return 0
    directory = run_directory(recipe, path)
    if resume and is_finished(directory, recipe):
        say(f"{directory} is finished: nothing is left to train")
        return 0
    session = Session(material, directory, resume=resume, on_note=say, world=world)
    if world.speaks:
        return run(session)
    if not session.train():
        return INTERRUPTED
    session.finish()
    return 0


def _nothing(message: str) -> None:
    """What the other ranks would say: rank 0 has said it."""


def run(session: "Session") -> int:
    """Train to the end, or say how to go on. The exit status."""
    from hanlin.api import sampler

    directory, objective = session.directory, session.material.objective
    from_the_start = session.progress.step == 0
    with TrainingDisplay(objective) as display:
        finished = session.train(display, look=sampler(session.material))
    if not finished:
        out.print(
            f"\nstopped after step {session.progress.step}; a checkpoint is saved. Go on with 已保存，继续请运行：\n"
            f"  hanlin train {shlex.quote(str(directory / 'recipe.toml'))} "
            f"--set {shlex.quote(f'output.directory={directory}')} --resume",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    session.finish()
    if display.evaluations:
        print_scores(session, display.evaluations[0] if from_the_start else None, display.evaluations[-1])
    talks = session.model.score is None  # a reward model gives a number, not an answer
    ending = f"\n  hanlin chat {shlex.quote(str(directory))}" if talks else ""
    out.print(
        f"\ndone 完成: {directory}{ending}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def print_scores(session: "Session", before: "Sequence[Any] | None", after: "Sequence[Any]") -> None:
    """The held-out examples before and after, with intervals; a resumed run has seen the end only."""
    from hanlin.evaluation.report import table
    from hanlin.evaluation.scores import score_rows

    held_out = session.data.held_out
    title = f"Held-out {session.material.objective.noun} 留出集"
    if before is None:
        out.print(table(score_rows(held_out, after), title=title, names=("after 之后", "")))
    else:
        out.print(table(score_rows(held_out, before, after), title=title))


def print_plan(material: "Material") -> None:
    """Everything a dry run says."""
    from hanlin.training.plan import make_plan

    out.print(f"format 对话格式: {material.format.name}", highlight=False)
    for report in material.data.lengths:
        for line in report.lines():
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in make_plan(material).lines():
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def say_what_was_dropped(material: "Material") -> None:
    """Notes about rows and pairs that were left out or shortened."""
    for rows in material.data.rows:
        if rows.skipped or rows.ignored:
            for line in rows.lines():
                note(line)
    for lengths in material.data.lengths:
        for reason, count in lengths.dropped.items():
            note(f"{count} {lengths.noun} dropped: {reason} ({', '.join(lengths.examples.get(reason, ()))})")
        if lengths.shortened:
            note(f"{lengths.shortened} prompts shortened by {lengths.cut_tokens} tokens in all")


class TrainingDisplay:
    """An `Observer` that draws one progress bar: step, what the objective shows of it, tokens/s, time left. It keeps
    the evaluations.
    """

    def __init__(self, objective: "Objective[Any]") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from hanlin.cli.console import err

        self._bar = Progress(
            TextColumn("training 训练"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=err,
        )
        self._task = self._bar.add_task("training", total=None, numbers="")
        self._is_terminal = err.is_terminal
        self.evaluations: list[Sequence[Any]] = []
        self._objective = objective

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, progress: "Progress", num_steps: int, metrics: dict[str, float]) -> None:
        shown = self._objective.step_line.format_map(metrics)
        numbers = f"{shown} · {metrics['tokens_per_second']:.0f} tok/s"
        self._bar.update(self._task, completed=progress.step, total=num_steps, numbers=numbers)
        if not self._is_terminal and (progress.step % 10 == 0 or progress.step == num_steps):
            self._bar.console.print(f"step {progress.step}/{num_steps} {numbers}", highlight=False)

    def evaluated(self, progress: "Progress", scores: "Sequence[Any]") -> None:
        self.evaluations.append(scores)
        shown = self._objective.held_out_line.format_map(self._objective.summarise(scores))
        self._bar.console.print(f"held out at step {progress.step} 留出集: {shown}", highlight=False)

    def saved(self, path: Path) -> None:
        self._bar.console.print(f"saved 已保存 {path}", highlight=False, markup=False, soft_wrap=True)
