"""`hanlin data`: what is in data, a few rows of it, other forms, a held-out part, pairs of feedback. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from hanlin.cli.console import err, note, out
from hanlin.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.curation.conversion import LeftOut
    from hanlin.curation.shards import Row
    from hanlin.curation.survey import Survey
    from hanlin.curation.weak_pairs import Ties
    from hanlin.data.forms import Form

data = typer.Typer(
    help="Look into data, sample, convert and split it, make pairs of feedback. 数据工具", no_args_is_help=True
)
Files = Annotated[
    list[str], typer.Argument(help="Files and folders: .jsonl .json .csv .parquet .gz .zst. 数据文件或文件夹")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else. 输出 JSON")]
Seed = Annotated[int, typer.Option(help="Another seed draws other rows. 随机种子")]


@data.command()
def stats(
    files: Files,
    near: Annotated[bool, typer.Option("--near", help="Count near-duplicates too, which takes longer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rows, characters, languages, turns, lengths and duplicates, by file and side. 数据概况。"""
    from hanlin.curation.shards import find_shards
    from hanlin.curation.survey import as_dict, survey

    found = survey(find_shards(files), near=near)
    if as_json:
        print(json.dumps(as_dict(found), ensure_ascii=False, indent=2))
        return
    _show_files(found)
    _show_sides(found)
    turns = ", ".join(f"{turns}: {count:,}" for turns, count in sorted(found.turns.items()))
    lines = [f"turns 轮数 {turns}"] if turns else []
    lines.append(f"repeated rows 重复行 {found.repeated:,}; repeated prompts 重复提示 {found.prompts_repeated:,}")
    if found.similar is not None:
        lines.append(f"near-duplicate rows 近似重复行 {found.similar:,}")
    for line in lines:
        _say(line)
    _tell(found.left_out)


def _say(line: str) -> None:
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def _tell(left_out: "LeftOut", path: Path | None = None) -> None:
    """What was left out and why."""
    for line in left_out.summary():
        note(f"left out 未用: {line}")
    if path is not None:
        note(f"each of them with its place 逐行记录: {path}")


def _show_files(found: "Survey") -> None:
    table = Table()
    table.add_column("file 文件", overflow="fold")
    for heading in ("rows 行", "left out 未用", "characters 字符", "repeated 重复"):
        table.add_column(heading, justify="right")
    for name, one in found.files.items():
        numbers = (one.rows, one.left_out, one.characters, one.repeated)
        table.add_row(escape(name), *(f"{number:,}" for number in numbers))
    out.print(table)


def _show_sides(found: "Survey") -> None:
    from hanlin.curation.survey import lengths

    table = Table(caption="lengths in Han characters and Latin words 长度按汉字与单词计", caption_justify="left")
    table.add_column("side 部分", no_wrap=True)
    for heading in ("texts 文本", "characters 字符", "mean 平均", "median 中位", "95%", "max 最长"):
        table.add_column(heading, justify="right")
    table.add_column("languages 语言")
    for side, one in found.sides.items():
        size = lengths(one)
        languages = ", ".join(f"{name} {count / one.texts:.0%}" for name, count in one.languages.most_common(4))
        measures = (size["mean"], size["median"], size["p95"], size["max"])
        table.add_row(
            side, f"{one.texts:,}", f"{one.characters:,}", *(f"{value:,.0f}" for value in measures), languages
        )
    out.print(table)


@data.command()
def sample(
    files: Files,
    number: Annotated[int, typer.Option("-n", "--number", help="How many rows. 行数")] = 5,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as they are, one a line. 原样输出")] = False,
) -> None:
    """Show rows drawn by chance, the same for the same seed. 随机查看几行。"""
    from hanlin.curation.sampling import sample_rows
    from hanlin.curation.shards import find_shards

    for row in sample_rows(find_shards(files), number, seed=seed):
        if as_json and not row.trouble:
            print(row.raw.decode("utf-8", "backslashreplace"))
        else:
            _show_row(row)


def _show_row(row: "Row") -> None:
    from hanlin.curation.rows import slots_of
    from hanlin.data.messages import BadRow

    try:
        kind, slots, label = slots_of(row)
    except BadRow as bad:
        err.print(f"[bold]{escape(row.place)}[/] [red]{escape(bad.reason)}[/]", soft_wrap=True)
        return
    named = "" if label == row.place else f" {label}"
    out.print(f"[bold]{escape(row.place)}[/] {kind}{escape(named)}", soft_wrap=True, highlight=False)
    for side, text in slots:
        out.print(f"[cyan]{side:>10}[/] {escape(text)}", soft_wrap=True, highlight=False)


@data.command()
def convert(
    files: Files,
    output: Annotated[Path, typer.Option("-o", "--output", help=".jsonl(.gz .zst) .json .parquet. 输出文件")],
    to: Annotated[
        str, typer.Option(help="hanlin openai sharegpt alpaca; pairs alone: trl trl-plain. 目标格式")
    ] = "hanlin",
) -> None:
    """Write pairs or conversations in another form; nothing is lost silently. 转换格式。"""
    from hanlin.curation.conversion import convert_files
    from hanlin.curation.shards import find_shards
    from hanlin.data.forms import FORMS

    if to not in FORMS:
        raise ConfigError(f"--to {to!r} is unknown; known: {', '.join(FORMS)}")
    done = convert_files(find_shards(files), output, cast("Form", to))
    _say(f"{done.read:,} rows read 读入, {done.written:,} written 写出: {output}")
    for name, count in done.lost.most_common():
        note(f"no place for 无处存放 {name}: {count:,} ×")
    _tell(done.left_out, done.set_aside)


@data.command()
def split(
    files: Files,
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for the two files. 输出文件夹")],
    held_out: Annotated[float, typer.Option(help="A share (0.05) or a number of rows (200). 留出比例或行数")] = 0.05,
    seed: Seed = 0,
    threshold: Annotated[float, typer.Option(help="Similarity from which rows stay together. 近似阈值")] = 0.7,
) -> None:
    """Split into train.jsonl and held-out.jsonl; near-duplicates stay on one side. 划分训练集与留出集。"""
    from hanlin.curation.sampling import split_rows
    from hanlin.curation.shards import find_shards

    done = split_rows(find_shards(files), output, held_out=held_out, seed=seed, threshold=threshold)
    _say(f"{done.train:,} rows 行 {done.paths[0]}\n{done.held_out:,} rows 行 {done.paths[1]}")
    total = done.train + done.held_out
    _say(f"{done.groups:,} groups of near-duplicates among {total:,} rows, the largest of {done.largest:,} 近似组")
    _tell(done.left_out, done.set_aside)


@data.command()
def pairs(
    files: Files,
    output: Annotated[Path, typer.Option("-o", "--output", help=".jsonl(.gz .zst) .json .parquet. 输出文件")],
    margin: Annotated[float, typer.Option(help="Least difference between two answers. 最小差距")] = 0.0,
    min_votes: Annotated[int, typer.Option(help="Votes that an answer needs. 最少票数")] = 1,
    ties: Annotated[str, typer.Option(help="Equal answers: drop, or prefer the shorter or longer. 平局处理")] = "drop",
    max_pairs: Annotated[int, typer.Option(help="Pairs of one prompt, the widest apart first. 每个提示最多几对")] = 1,
    as_json: AsJson = False,
) -> None:
    """Preference pairs from scores, ratings, counts, thumbs or ranked lists. 由反馈生成偏好对。"""
    from hanlin.curation.shards import find_shards
    from hanlin.curation.weak_pairs import TIES, PairRule, pair_files

    if ties not in TIES:
        raise ConfigError(f"--ties {ties!r} is unknown; known: {', '.join(TIES)}")
    rule = PairRule(margin=margin, min_votes=min_votes, ties=cast("Ties", ties), max_pairs=max_pairs)
    done = pair_files(find_shards(files), output, rule)
    counts: dict[str, Any] = {
        "rows": done.read,
        "prompts": done.prompts,
        "answers": done.answers,
        "pairs": done.written,
    }
    if as_json:
        told = {**counts, "left_out": dict(done.left_out.counts)}
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return
    names: Sequence[str] = ("rows 行", "prompts 提示", "answers 回答", "pairs 偏好对")
    _say(", ".join(f"{count:,} {name}" for count, name in zip(counts.values(), names, strict=True)) + f": {output}")
    _tell(done.left_out, done.set_aside)
