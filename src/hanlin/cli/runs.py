"""`hanlin runs`: which runs there are and how they went; `hanlin runs compare`: what makes them differ. No torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from hanlin.cli.console import note, out
from hanlin.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.training.runs import Run

STATES = {
    "finished": "[green]finished 完成[/]",
    "interrupted": "[yellow]interrupted 中断[/]",
    "running": "running 运行中",
}
# The held-out numbers that the list shows: the first two that a run has.
HELD_OUT = {
    "eval_rewards/accuracies": "accuracy 准确率",
    "eval_nll_loss": "NLL",
    "eval_perplexity": "perplexity 困惑度",
    "eval_rewards/margins": "margin 差距",
    "eval_loss": "loss 损失",
}
WIDE = 120  # columns of a terminal; a narrower one shows neither model nor speed
HIDDEN = {"epoch", "num_tokens", "learning_rate"}  # of the comparison's numbers: the recipe says them


def runs(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR...] | compare RUN RUN...",
            help="Folders with runs, or runs; ./runs when left out. After `compare`: the runs. 运行目录",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON to standard output, and nothing else. 输出 JSON")
    ] = False,
    plot: Annotated[Path, typer.Option(help="Where `compare` draws the curves, a PNG. 曲线图文件")] = Path(
        "runs-compare.png"
    ),
) -> None:
    """List runs and how they went, or `compare` some: recipes, final numbers, curves. 列出或比较训练运行。"""
    from hanlin.training.runs import find_runs, open_run

    given = what or ["runs"]
    if given[0] == "compare":
        if len(given) < 3:
            raise ConfigError("hanlin runs compare needs two runs or more: hanlin runs compare RUN RUN")
        _compare([open_run(Path(name)) for name in given[1:]], plot, as_json=as_json)
        return
    found = find_runs([Path(name) for name in given])
    if as_json:
        print(json.dumps([_as_dict(run) for run in found], ensure_ascii=False, indent=2))
    elif found:
        _list(found)
    else:
        note(f"no runs in {', '.join(given)}: 没有找到运行; hanlin train RECIPE.toml makes one")


def _as_dict(run: "Run") -> dict[str, Any]:
    return {
        "path": str(run.path),
        "model": run.model,
        "objective": run.objective,
        "state": run.state,
        "step": run.step,
        "changed": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.changed)),
        "final": run.final,
    }


def _list(found: "Sequence[Run]") -> None:
    wide = out.width >= WIDE
    table = Table(box=box.HEAVY_HEAD if wide else box.SIMPLE_HEAD, padding=(0, 1 if wide else 0))
    table.add_column("run\n运行", overflow="fold")
    if wide:
        table.add_column("model\n模型", overflow="fold")
    for heading in ("objective\n目标", "state\n状态"):
        table.add_column(heading, no_wrap=True)
    for heading in ("step\n步", "loss\n损失", "held out\n留出集", *(["tok/s"] if wide else []), "date\n日期"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in found:
        final = run.final
        held_out = [
            f"{label if wide else label.split()[0]} {final[name]:.3f}"
            for name, label in HELD_OUT.items()
            if name in final
        ]
        speed = f"{final['tokens_per_second']:.0f}" if "tokens_per_second" in final else "–"
        table.add_row(
            escape(str(run.path)),
            *([escape(run.model)] if wide else []),
            escape(run.objective if wide else run.objective.replace(" ", "\n")),
            STATES[run.state] if wide else STATES[run.state].replace(" ", "\n"),
            str(run.step),
            _number(final.get("loss")),
            "\n".join(held_out[:2]) or "–",
            *([speed] if wide else []),
            time.strftime("%Y-%m-%d %H:%M" if wide else "%m-%d\n%H:%M", time.localtime(run.changed)),
        )
    out.print(table)


def _compare(chosen: "Sequence[Run]", plot: Path, *, as_json: bool) -> None:
    from hanlin.training.runs import differences, plot_runs

    differing = differences(chosen)
    names = dict.fromkeys(name for run in chosen for name in run.final if name not in HIDDEN)
    drawn = plot_runs(chosen, plot)
    if as_json:
        report = {"runs": [_as_dict(run) for run in chosen], "differences": differing, "plot": str(drawn)}
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return
    _side_by_side("recipe 配方", chosen, [(key, [_setting(value) for value in row]) for key, row in differing.items()])
    states = [("state 状态", [run.state for run in chosen]), ("step 步", [str(run.step) for run in chosen])]
    numbers = [(name, [_number(run.final.get(name)) for run in chosen]) for name in names]
    _side_by_side("final numbers 最终数值", chosen, [*states, *numbers])
    out.print(f"curves 曲线: {drawn}", markup=False, highlight=False, soft_wrap=True)


def _side_by_side(title: str, chosen: "Sequence[Run]", rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in chosen:
        table.add_column(escape(str(run.path)), justify="right", overflow="fold")
    for label, values in rows:
        table.add_row(escape(label), *(escape(value) for value in values))
    if rows:
        out.print(table)
    else:
        out.print(f"{title}: equal 相同")


def _setting(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
