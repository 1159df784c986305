"""What a run leaves beside its rows: a page to look at, a data card, and a sheet by which people measure precision."""

import csv
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanlin.curation.contamination import BenchmarkReport
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.report import names_of, page, under
from hanlin.curation.shards import write_file
from hanlin.errors import DataError

SAMPLES = 12  # of each rule, on the page and on the sheet


def rule_name(rule: str) -> str:
    """A rule's name in both languages."""
    english, chinese = names_of(rule)
    return f"{chinese} {english}" if chinese != english else english


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


def card(recipe: CurationRecipe, counts: Mapping[str, int], benchmarks: Sequence[BenchmarkReport] = ()) -> str:
    """A data card in Markdown."""
    read = sum(under(counts, "read").values())
    lines = ["# Data card 数据卡", "", "Curated with `hanlin curate` 由 `hanlin curate` 清洗。", ""]
    lines += ["## Sources 来源", "", *(f"- `{file}`" for file in recipe.input.files), ""]
    lines += ["## Rows 行数", "", f"{read:,} read 读入, {counts.get('written|all', 0):,} written 写出.", ""]
    lines += ["| left out by 去除原因 | rows 行数 |", "|---|---|"]
    lines += [f"| {rule_name(rule)} | {count:,} |" for rule, count in under(counts, "dropped").items()]
    lines += [f"| set aside 搁置: {reason} | {count:,} |" for reason, count in under(counts, "aside").items()]
    lines += ["", "## Edits 修改", "", "| side | rule | action | times |", "|---|---|---|---|"]
    for name, count in under(counts, "decision").items():
        side, rule, action = name.split("|")
        if action not in ("drop",):
            lines.append(f"| {side} | {rule} | {action} | {count:,} |")
    if benchmarks:
        lines += ["", "## Benchmark items 评测题", "", f"| {' | '.join(_BENCHMARK_COLUMNS)} |"]
        lines += ["|---" * len(_BENCHMARK_COLUMNS) + "|"]
        lines += [f"| {' | '.join(_benchmark_cells(one))} |" for one in benchmarks]
    lines += ["", "## Languages 语言", "", "| side | language | texts |", "|---|---|---|"]
    lines += [f"| {' | '.join(name.split('|'))} | {count:,} |" for name, count in under(counts, "language").items()]
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
