"""`hanlin demo`: the whole story in minutes. A real model, real pairs, ORPO, the proof before and after, then a chat.

It trains `recipes/demo.toml`; nothing here is special to the demo but what it says. Base Gemma models write Chinese
well and cannot chat, so the change is there for everyone to see.
"""

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanlin.cli.console import counting, downloading, fail, is_terminal, note, out, show_logs
from hanlin.cli.shipped import shipped
from hanlin.errors import ConfigError, FetchError

if TYPE_CHECKING:
    from hanlin.evaluation.language import Reply
    from hanlin.evaluation.prompts import Prompt
    from hanlin.evaluation.report import Row
    from hanlin.objectives.scores import PairScore
    from hanlin.training.session import Material, Session

DEFAULT, SMALLER = "gemma-3-270m", "smollm2"
HELD_OUT = "data/starter-zh-en.heldout.jsonl"
REPLY_TOKENS = 192
# A model of this size repeats itself under greedy decoding; both sides are sampled alike, from fixed seeds.
TEMPERATURE, TOP_P, REPETITION_PENALTY = 0.6, 0.9, 1.1
SIDE_BY_SIDE = ("everyday", "maths", "roleplay", "writing", "safety", "english")
# Rows of the closing table; `hanlin evaluate` shows all.
TABLE_KEYS = (
    "pairs.accuracy_log_odds",
    "pairs.chosen_nll",
    "pairs.margin",
    "zh.pass",
    "zh.mixed",
    "zh.ended",
    "zh.looping",
    "zh.emoji",
    "en.pass",
    "en.ended",
    "en.emoji",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the model does at one moment: scores of the held-out pairs and replies to the held-out prompts."""

    scores: "Sequence[PairScore]"
    replies: "Sequence[Reply]"


def demo(
    model: Annotated[
        str, typer.Option(help=f"{DEFAULT}, {SMALLER}, a directory, a .gguf file or a hub id. 要微调的模型")
    ] = DEFAULT,
    data: Annotated[
        Path | None, typer.Option(help="Your own preference pairs; a tenth is held out. 你自己的偏好数据")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; runs/demo when left out. 输出目录")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe.")
    ] = None,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Do not chat at the end. 结束后不进入对话")] = False,
) -> None:
    """Tune a small real model on your machine, see before and after, chat with it. 十分钟看完整个流程。"""
    began = time.monotonic()
    show_logs()
    from hanlin.config import load_recipe
    from hanlin.training.recipe import Recipe
    from hanlin.training.session import Session, open_material

    path = fetch(model)
    directory = output or _free_directory(Path("runs") / "demo")
    values = [f"model.path={json.dumps(path)}", f"output.directory={json.dumps(str(directory))}", *_data(data)]
    material = open_material(load_recipe(Recipe, shipped("recipes/demo.toml"), [*values, *(set or [])]), on_note=note)
    session = Session(material, directory, resume=False, on_note=note)
    _introduce(material, directory)
    rows, before, after = _run(session, material)
    results = _write_results(directory, rows, before, after)
    session.finish(results=results)
    _show(rows, before, after)
    minutes = (time.monotonic() - began) / 60
    out.print(f"\nDone in {minutes:.1f} minutes 用时: {directory}\n  hanlin chat {directory}", highlight=False)
    del session
    gc.collect()
    if is_terminal() and not no_chat:
        from hanlin.cli.chat import chat

        chat(str(directory))


def fetch(name: str) -> str:
    """Name the terms, then fetch the model; where the default cannot be had, offer the smaller one. Returns the name to
    train.
    """
    from hanlin.api import locate
    from hanlin.models.fetch import KNOWN_MODELS

    known = KNOWN_MODELS.get(name)
    if known is not None:
        out.print(
            f"[bold]{known.title}[/]: {known.terms}, {known.terms_url}\n"
            "By going on you accept these terms. 继续即表示接受上述条款。 "
            f"({known.num_bytes / 1e6:.0f} MB, cached 会缓存)",
            highlight=False,
        )
    try:
        with downloading() as on_progress:
            locate(name, on_progress=on_progress)
        return name
    except FetchError as error:
        if name != DEFAULT:
            raise
        fail(str(error))
        smaller = KNOWN_MODELS[SMALLER]
        out.print(
            "What was downloaded is kept: run the same command again to go on. "
            "已下载部分会保留，再运行一次即可继续。\n"
            f"Or take {smaller.title} ({smaller.terms}): hanlin demo --model {SMALLER}",
            highlight=False,
        )
        if not is_terminal() or not typer.confirm(f"Go on with {smaller.title} now? 现在改用它吗?", default=True):
            raise typer.Exit(2) from None
        return fetch(SMALLER)


def _data(data: Path | None) -> list[str]:
    """The recipe's data: the shipped pairs by their place on this machine, or the user's with a tenth held out."""
    if data is None:
        places = {"train": "data/starter-zh-en.jsonl", "held_out": HELD_OUT}
        return [f"data.{key}=[{json.dumps(str(shipped(name)))}]" for key, name in places.items()]
    from hanlin.data.sources import read_preferences

    rows = read_preferences([data])[1].kept
    if rows < 20:
        raise ConfigError(f"{data} has {rows} pairs; the demo needs at least 20, to hold some out and still learn")
    return [f"data.train=[{json.dumps(str(data))}]", "data.held_out=[]", f"data.held_out_pairs={min(100, rows // 10)}"]


def _introduce(material: "Material", directory: Path) -> None:
    data, recipe = material.data, material.recipe
    out.print(
        f"[bold]ORPO[/] on {len(data.train)} pairs 偏好对 "
        f"({material.num_steps} steps of {recipe.training.batch_pairs}), "
        f"{len(data.held_out)} held out 留出 → {directory}",
        highlight=False,
    )


def _run(session: "Session", material: "Material") -> "tuple[list[Row], Measured, Measured]":
    from hanlin.api import sampler
    from hanlin.cli.train import TrainingDisplay
    from hanlin.evaluation.pairs import pair_rows
    from hanlin.evaluation.prompts import read_prompts
    from hanlin.evaluation.report import language_rows

    prompts = read_prompts(shipped(HELD_OUT))
    answers_before = _answer(session, prompts, "before 微调前")
    with TrainingDisplay(material.objective) as display:
        finished = session.train(display, look=sampler(material))
    if not finished:
        out.print(f"Stopped and saved. Go on with 继续: hanlin train {session.directory / 'recipe.toml'} --resume")
        raise typer.Exit(130)
    before = Measured(display.evaluations[0], answers_before)
    after = Measured(display.evaluations[-1], _answer(session, prompts, "after 微调后"))
    rows = pair_rows(material.data.held_out, before.scores, after.scores)
    return rows + language_rows(before.replies, after.replies), before, after


def _answer(session: "Session", prompts: "Sequence[Prompt]", label: str) -> "Sequence[Reply]":
    """Answer the held-out prompts with the session's model as it is now."""
    from hanlin.evaluation.replies import collect_replies
    from hanlin.generation.assistant import Assistant
    from hanlin.generation.sampling import Sampling

    material = session.material
    assistant = Assistant(session.model, material.tokenizer, material.format, num_slots=32)
    sampling = Sampling(
        temperature=TEMPERATURE,
        top_p=TOP_P,
        repetition_penalty=REPETITION_PENALTY,
        max_tokens=REPLY_TOKENS,
        seed=0,
    )
    with counting(label) as on_progress:
        return collect_replies(assistant, prompts, sampling, on_progress=on_progress)


def _write_results(directory: Path, rows: "Sequence[Row]", before: Measured, after: Measured) -> str:
    """Write results.json with every number and reply; return the Markdown for the model card."""
    from hanlin.evaluation.report import to_dict

    replies = [
        {"id": old.prompt.id, "prompt": old.prompt.messages[-1].content, "before": old.text, "after": new.text}
        for old, new in zip(before.replies, after.replies, strict=True)
    ]
    results = {"metrics": to_dict(list(rows)), "replies": replies}
    text = json.dumps(results, ensure_ascii=False, indent=2) + "\n"
    (directory / "results.json").write_text(text, encoding="utf-8")
    lines = ["| metric 指标 | before 之前 | after 之后 | difference 差异 (95%) |", "|---|---|---|---|"]
    for row in rows:
        if row.key in TABLE_KEYS and row.after and row.difference:
            low, high = row.difference.low, row.difference.high
            lines.append(
                f"| {row.english} {row.chinese} | {row.before.value:.3f} | {row.after.value:.3f} "
                f"| {row.difference.value:+.3f} [{low:+.3f}, {high:+.3f}] |"
            )
    return "\n".join(lines)


def _show(rows: "Sequence[Row]", before: Measured, after: Measured) -> None:
    """The table, the faults, and six prompts with both replies."""
    from rich.table import Table

    from hanlin.evaluation.report import table

    shown = [row for row in rows if row.key in TABLE_KEYS]
    out.print(table(shown, title="Held-out pairs and prompts 留出的偏好对与提问"))
    faults = [row for row in rows if row.key.startswith("fault.")]
    if faults:
        out.print(table(faults, title="Reward accuracy per fault 各类错误的识别率"))
    replies = Table(title="Same prompts, before and after 同样的提问，微调前后", show_lines=True, expand=True)
    for name in ("prompt 提问", "before 微调前", "after 微调后"):
        replies.add_column(name, ratio=2 if name.startswith("prompt") else 3, overflow="fold")
    for category in SIDE_BY_SIDE:
        for old, new in zip(before.replies, after.replies, strict=True):
            if old.prompt.category == category and len(old.prompt.messages) == 1:
                replies.add_row(old.prompt.messages[-1].content, _excerpt(old.text), _excerpt(new.text))
                break
    out.print(replies, markup=False)


def _excerpt(text: str, *, lines: int = 8, characters: int = 240) -> str:
    """The beginning of a reply, enough to see what it is like; results.json has all of it."""
    shown = "\n".join([line for line in text.strip().splitlines() if line.strip()][:lines])[:characters]
    return shown if len(shown) >= len(text.strip()) else f"{shown} …"


def _free_directory(wanted: Path) -> Path:
    """`wanted`, or the next of wanted-2, wanted-3 … that holds nothing yet."""
    candidate, number = wanted, 1
    while candidate.exists() and any(candidate.iterdir()):
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate
