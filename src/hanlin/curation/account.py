"""What a run leaves beside its rows: a page to look at, a data card, and a sheet by which people measure precision."""

import csv
import html
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanlin.curation.contamination import BenchmarkReport
from hanlin.curation.policy import SIDE_RULES
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.shards import write_file
from hanlin.errors import DataError

SAMPLES = 12  # of each rule, on the page and on the sheet
_NAMES = {
    "toxic": ("toxic", "有害内容"),
    "guard": ("by a guard model", "守卫模型判为有害"),
    "contaminated": ("holds a benchmark item", "含评测题"),
    "pair_equal": ("equal answers", "两答相同"),
    "pair_gap": ("lengths far apart", "长度悬殊"),
    "pair_both": ("both fail one rule", "两答同犯"),
    "pair_worse": ("chosen is worse", "优选更差"),
    "duplicate_exact": ("the same row again", "完全重复"),
    "duplicate_prompt": ("a similar prompt", "提示近似"),
    "duplicate_prompt_chosen": ("similar prompt and answer", "提示与优选近似"),
    "duplicate_pair": ("a similar row", "整行近似"),
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#4a7;height:.8rem;display:inline-block}"
    "details{margin:.4rem 0}code{background:#f3f3f3;padding:0 .2rem;overflow-wrap:anywhere}"
)


def rule_name(rule: str) -> str:
    """A rule's name in both languages."""
    if rule in SIDE_RULES:
        return f"{SIDE_RULES[rule].chinese} {SIDE_RULES[rule].english}"
    return " ".join(reversed(_NAMES.get(rule, (rule, ""))))


def write_account(
    output: Path,
    recipe: CurationRecipe,
    counts: Counter[str],
    decisions: Iterable[bytes],
    benchmarks: Sequence[BenchmarkReport] = (),
) -> None:
    """Write report.html, README.md, precision.csv and, last of all, curation.json, which marks the run as finished."""
    samples = sample_decisions(decisions)
    write_file(output / "report.html", [page(counts, samples, benchmarks).encode("utf-8", "backslashreplace")])
    write_file(output / "README.md", [card(recipe, counts, benchmarks).encode("utf-8", "backslashreplace")])
    write_file(output / "precision.csv", [precision_sheet(samples).encode("utf-8-sig", "backslashreplace")])
    told = {"version": 1, "counts": dict(sorted(counts.items())), "recipe": json.loads(recipe.model_dump_json())}
    write_file(output / "curation.json", [json.dumps(told, ensure_ascii=False, indent=1).encode()])


def sample_decisions(decisions: Iterable[bytes]) -> dict[str, list[dict[str, Any]]]:
    """For each rule a random sample of its decisions (reservoir, one seed), not its first ones."""
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    seen: Counter[str] = Counter()
    draw = random.Random(0)
    for line in decisions:
        rule = line.partition(b'"rule": "')[2].partition(b'"')[0].decode()
        seen[rule] += 1
        if len(samples[rule]) < SAMPLES:
            samples[rule].append(json.loads(line))
        elif (place := draw.randrange(seen[rule])) < SAMPLES:
            samples[rule][place] = json.loads(line)
    return dict(samples)


def _under(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    found = {name.removeprefix(prefix + "|"): count for name, count in counts.items() if name.startswith(prefix + "|")}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def page(
    counts: Mapping[str, int],
    samples: Mapping[str, list[dict[str, Any]]],
    benchmarks: Sequence[BenchmarkReport] = (),
) -> str:
    """The report: one static page without scripts, fonts or links to anywhere."""
    return (
        "<!doctype html><html lang='zh'><meta charset='utf-8'><title>Hanlin 数据清洗报告 curation report</title>"
        f"<style>{_STYLE}</style><h1>数据清洗报告 · Curation report</h1>"
        + _funnel(counts)
        + _table("按规则 By rule", ("side", "rule", "action"), _under(counts, "decision"))
        + _table("按来源 By source", ("source", "rule", "action"), _under(counts, "by source"))
        + _benchmarks(benchmarks)
        + _table("读不了的行 Rows set aside", ("reason",), _under(counts, "aside"))
        + _table("长度 Length (at most, units; 0: longer)", ("side", "units"), _under(counts, "length"))
        + _table("语言 Language", ("side", "language"), _under(counts, "language"))
        + "<h2>样例 Samples</h2>"
        + "".join(_sample(rule, found) for rule, found in sorted(samples.items()))
        + "</html>\n"
    )


def _funnel(counts: Mapping[str, int]) -> str:
    left = sum(_under(counts, "read").values())
    rows = [("读入 read", left)]
    if aside := sum(_under(counts, "aside").values()):
        left -= aside
        rows.append(("− 搁置 set aside", left))
    for rule, count in _under(counts, "dropped").items():
        left -= count
        rows.append((f"− {rule_name(rule)}", left))
    rows.append(("写出 written", counts.get("written|all", left)))
    most = max(1, rows[0][1])
    cells = "".join(
        f"<tr><td>{html.escape(name)}<td class=n>{count:,}<td><span class=bar style='width:{20 * count / most:.2f}rem'>"
        "</span>"
        for name, count in rows
    )
    return f"<h2>漏斗 Funnel</h2><table>{cells}</table>"


_BENCHMARK_COLUMNS = (
    "benchmark 评测集",
    "items 题数",
    "too short 过短",
    "found 命中",
    "rows 行数",
    "mean 平均覆盖",
    "most 最高覆盖",
)


def _benchmark_cells(one: BenchmarkReport) -> tuple[str, ...]:
    mean, most = (f"{share:.0%}" if one.hit else "–" for share in (one.coverage, one.most))
    return one.name, f"{one.items:,}", f"{one.too_short:,}", f"{one.hit:,}", f"{one.rows:,}", mean, most


def _benchmarks(reports: Sequence[BenchmarkReport]) -> str:
    if not reports:
        return ""
    head = "".join(f"<th>{column}" for column in _BENCHMARK_COLUMNS)
    lines = []
    for one in reports:
        name, *numbers = map(html.escape, _benchmark_cells(one))
        lines.append(f"<tr><td>{name}{''.join(f'<td class=n>{number}' for number in numbers)}")
    return f"<h2>评测题泄漏 Benchmark items</h2><table><tr>{head}{''.join(lines)}</table>"


def _table(title: str, columns: tuple[str, ...], found: Mapping[str, int]) -> str:
    if not found:
        return ""
    most = max(found.values())
    head = "".join(f"<th>{column}" for column in columns)
    lines = []
    for name, count in found.items():
        cells = "".join(f"<td>{html.escape(one)}" for one in name.split("|"))
        bar = f"<span class=bar style='width:{12 * count / most:.2f}rem'></span>"
        lines.append(f"<tr>{cells}<td class=n>{count:,}<td>{bar}")
    return f"<h2>{title}</h2><table><tr>{head}<th>rows<th>{''.join(lines)}</table>"


def _sample(rule: str, found: list[dict[str, Any]]) -> str:
    items = []
    for one in found:
        change = html.escape(one.get("before", ""))
        after = html.escape(one.get("after", ""))
        arrow = f" → <code>{after}</code>" if after else ""
        where = html.escape(f"{one['row']} {one['side']}: {one['reason']}")
        items.append(f"<li>{where}<br><code>{change}</code>{arrow}")
    return f"<details><summary>{html.escape(rule_name(rule))} ({rule})</summary><ul>{''.join(items)}</ul></details>"


def card(recipe: CurationRecipe, counts: Mapping[str, int], benchmarks: Sequence[BenchmarkReport] = ()) -> str:
    """A data card in Markdown."""
    read = sum(_under(counts, "read").values())
    lines = ["# Data card 数据卡", "", "Curated with `hanlin curate` 由 `hanlin curate` 清洗。", ""]
    lines += ["## Sources 来源", "", *(f"- `{file}`" for file in recipe.input.files), ""]
    lines += ["## Rows 行数", "", f"{read:,} read 读入, {counts.get('written|all', 0):,} written 写出.", ""]
    lines += ["| left out by 去除原因 | rows 行数 |", "|---|---|"]
    lines += [f"| {rule_name(rule)} | {count:,} |" for rule, count in _under(counts, "dropped").items()]
    lines += [f"| set aside 搁置: {reason} | {count:,} |" for reason, count in _under(counts, "aside").items()]
    lines += ["", "## Edits 修改", "", "| side | rule | action | times |", "|---|---|---|---|"]
    for name, count in _under(counts, "decision").items():
        side, rule, action = name.split("|")
        if action not in ("drop",):
            lines.append(f"| {side} | {rule} | {action} | {count:,} |")
    if benchmarks:
        lines += ["", "## Benchmark items 评测题", "", f"| {' | '.join(_BENCHMARK_COLUMNS)} |"]
        lines += ["|---" * len(_BENCHMARK_COLUMNS) + "|"]
        lines += [f"| {' | '.join(_benchmark_cells(one))} |" for one in benchmarks]
    lines += ["", "## Languages 语言", "", "| side | language | texts |", "|---|---|---|"]
    lines += [f"| {' | '.join(name.split('|'))} | {count:,} |" for name, count in _under(counts, "language").items()]
    lines += ["", "## Limits 局限", ""]
    lines += ["Rules err. `precision.csv` holds a sample of every rule for people to judge; `decisions.jsonl` holds"]
    lines += ["every decision with the text that was masked, so keep it as safe as the input.", ""]
    return "\n".join(lines)


def precision_sheet(samples: Mapping[str, list[dict[str, Any]]]) -> str:
    """A table for reviewers: they write y or n in the column `right`."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("rule", "version", "row", "side", "action", "reason", "before", "after", "right"))
    for rule in sorted(samples):
        for one in samples[rule]:
            fields = ("version", "row", "side", "action", "reason", "before", "after")
            writer.writerow((rule, *(one.get(name, "") for name in fields), ""))
    return out.getvalue()


def summarise_sheet(path: Path) -> list[tuple[str, int, int]]:
    """(rule, right, judged) of a sheet that people have filled in. Raises DataError where nobody has."""
    judged: Counter[str] = Counter()
    right: Counter[str] = Counter()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("gb18030", "replace")  # as a Chinese Excel saves it; rules and answers are the same
    delimiter = next((one for one in ";\t" if text.startswith(f"rule{one}")), ",")
    for row in csv.DictReader(io.StringIO(text), delimiter=delimiter):
        if "rule" not in row or "right" not in row:
            raise DataError(f"{path} is no precision.csv: it lacks the columns rule and right")
        answer = (row["right"] or "").strip().lower()
        if answer[:1] in ("y", "n", "1", "0", "是", "否", "对", "错"):
            judged[row["rule"]] += 1
            right[row["rule"]] += answer[:1] in ("y", "1", "是", "对")
    if not judged:
        raise DataError(f"{path}: nobody has filled in the column 'right' (y or n)")
    return [(rule, right[rule], judged[rule]) for rule in sorted(judged)]
