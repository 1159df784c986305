"""`hanlin curate`: filter data by a recipe, explain one row, summarise a sheet that reviewers filled in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanlin.cli.console import err, note, out, show_logs
from hanlin.cli.overrides import Overrides
from hanlin.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.curation.guarding import Asking
    from hanlin.curation.recipe import CurationRecipe
    from hanlin.curation.run import Progress
    from hanlin.curation.workers import Workers


def curate(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (.toml). 清洗配方")] = None,
    set: Overrides = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="FILE:ROW", help="Say what every rule says of one row. 解释一行")
    ] = None,
    precision: Annotated[
        Path | None, typer.Option("--precision", help="Summarise a precision.csv that reviewers filled in. 汇总审阅表")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", help="Which share of the chunks this process takes.")] = 0,
    world_size: Annotated[
        int, typer.Option("--world-size", help="Shares in all; run once without it to finish. 分片数")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, HOST:PORT, local. 用 Ray"),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors, and exit.")
    ] = False,
) -> None:
    """Filter data by a recipe, with an account of every decision. 按配方清洗数据。"""
    from hanlin.config import json_schema, load_recipe
    from hanlin.curation.recipe import CurationRecipe

    show_logs()
    if schema:
        out.print_json(data=json_schema(CurationRecipe))
    elif explain is not None:
        _explain(explain, load_recipe(CurationRecipe, recipe, set or []) if recipe else None)
    elif precision is not None:
        _summarise(precision)
    elif recipe is None:
        raise ConfigError("no recipe was named: hanlin curate RECIPE.toml; see docs/curation.md")
    elif ray is not None:
        if world_size > 1:
            raise ConfigError("--ray and --world-size are two ways to use several machines; choose one")
        _run_on_ray(load_recipe(CurationRecipe, recipe, set or []), ray)
    else:
        _run(load_recipe(CurationRecipe, recipe, set or []), rank, world_size)


def _run_on_ray(recipe: "CurationRecipe", address: str) -> None:
    """A guard that answers at an address is asked from here; one that runs here needs machines of its own."""
    from functools import partial

    from hanlin.cli.guards import open_guard
    from hanlin.curation.cluster import RayWorkers

    with RayWorkers(address, tasks=recipe.run.workers) as workers:
        guard = None
        if recipe.guard.kind == "shieldgemma":
            opened = partial(open_guard, recipe)
            guard = workers.asking(opened, actors=recipe.run.guard_actors, gpus=recipe.run.guard_gpus)
        _run(recipe, 0, 1, workers, guard)


def _run(
    recipe: "CurationRecipe",
    rank: int,
    world_size: int,
    workers: "Workers | None" = None,
    guard: "Asking | None" = None,
) -> None:
    from hanlin.cli.guards import open_guard
    from hanlin.curation.guarding import asking
    from hanlin.curation.run import run

    if guard is None and world_size == 1 and (opened := open_guard(recipe)) is not None:
        guard = asking(opened)
    with _bars() as (on_progress, on_guarded):
        done = run(
            recipe,
            rank=rank,
            world_size=world_size,
            guard=guard,
            workers=workers,
            on_progress=on_progress,
            on_guarded=on_guarded,
        )
    if not done.complete:
        note(f"rank {rank} of {world_size} is done; run the same recipe once without --rank to finish")
        return
    aside = done.total("aside")
    if aside:
        note(f"{aside} rows could not be read: {done.directory / 'set-aside.jsonl'}")
    said = f"{done.total('read'):,} rows read 读入, {done.total('written'):,} written 写出"
    out.print(f"{said}\n{done.directory / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _bars() -> "Iterator[tuple[Progress, Progress]]":
    """A bar of bytes for the rules, and one of rows for the guard once it begins."""
    from rich import progress

    columns = (progress.BarColumn(), progress.TextColumn("{task.fields[amount]}"), progress.TimeRemainingColumn())
    with progress.Progress(progress.TextColumn("{task.description}"), *columns, console=err, transient=True) as bar:
        rules = bar.add_task("curating 清洗", total=None, amount="")
        guard = bar.add_task("guard 守卫模型", total=None, amount="", visible=False)

        def on_progress(done: int, total: int) -> None:
            bar.update(rules, completed=done, total=total, amount=f"{done / 1e6:,.1f}/{total / 1e6:,.1f} MB")

        def on_guarded(done: int, total: int) -> None:
            bar.update(guard, completed=done, total=total, amount=f"{done:,}/{total:,}", visible=True)

        yield on_progress, on_guarded


def _explain(place: str, recipe: "CurationRecipe | None") -> None:
    from hanlin.cli.guards import open_guard
    from hanlin.curation.explain import explain

    if recipe is None:
        lines = explain(place)
    else:
        lines = explain(
            place,
            recipe.curation,
            decontamination=recipe.decontamination,
            guard=open_guard(recipe),
            guarded=recipe.guard.sides,
        )
    for line in lines:
        verdict = "keep 保留" if line.keep else f"OBJECTS 命中: {line.reason} {line.found}"
        out.print(f"{line.side:10} {line.rule:12} {verdict}", highlight=False, markup=False, soft_wrap=True)


def _summarise(sheet: Path) -> None:
    from hanlin.curation.account import summarise_sheet

    for rule, right, judged in summarise_sheet(sheet):
        out.print(f"{rule:24} {right}/{judged} right 正确 ({right / judged:.0%})", highlight=False, markup=False)
