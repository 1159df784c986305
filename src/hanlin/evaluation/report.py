"""What changed, as rows: one metric before, after and the paired difference, for a table, for JSON, or for a test.

A change is called better or worse only where the difference's 95% interval excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from hanlin.evaluation.language import METRICS, Reply, compare, summarise
from hanlin.evaluation.statistics import Estimate, mean, mean_difference, rate, rate_difference

Better = Literal["higher", "lower", ""]
Change = Literal["better", "worse", "changed", "unclear"]
_CHANGES: dict[Change, tuple[str, str]] = {
    "better": ("better 更好", "green"),
    "worse": ("worse 更差", "red"),
    "changed": ("changed 有变", "yellow"),
    "unclear": ("unclear 不明显", "dim"),
}
_GROUPS = {"zh": ("Chinese prompts", "中文提问"), "en": ("English prompts", "英文提问")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric. `after` and `difference` are None where only one model was measured; `key` is stable, for JSON."""

    key: str
    english: str
    chinese: str
    before: Estimate
    after: Estimate | None = None
    difference: Estimate | None = None
    is_rate: bool = True
    better: Better = ""

    @property
    def change(self) -> Change | None:
        """What the difference says; "changed" where neither direction is better."""
        if self.difference is None:
            return None
        if not self.difference.excludes_zero:
            return "unclear"
        if self.better == "":
            return "changed"
        return "better" if (self.difference.value > 0) == (self.better == "higher") else "worse"


def rate_row(
    key: str,
    labels: tuple[str, str],
    *,
    before: Sequence[bool],
    after: Sequence[bool] | None = None,
    better: Better = "",
) -> Row:
    """A row of a rate over items; `labels` are English and Chinese, `after` is in the order of `before`."""
    return Row(
        key=key,
        english=labels[0],
        chinese=labels[1],
        before=rate(before),
        after=None if after is None else rate(after),
        difference=None if after is None else rate_difference(before, after),
        better=better,
    )


def mean_row(
    key: str,
    labels: tuple[str, str],
    *,
    before: Sequence[float],
    after: Sequence[float] | None = None,
    better: Better = "",
) -> Row:
    """A row of a mean over items (a negative log-likelihood, a margin); arguments as for `rate_row`."""
    return Row(
        key=key,
        english=labels[0],
        chinese=labels[1],
        before=mean(before),
        after=None if after is None else mean(after),
        difference=None if after is None else mean_difference(before, after),
        is_rate=False,
        better=better,
    )


def language_rows(before: Sequence[Reply], after: Sequence[Reply] | None = None) -> list[Row]:
    """The rows of the language suite, keys such as "zh.pass"; with `after`, on the same prompts.

    Raises:
        DataError: the two sides do not answer the same prompts.
    """
    old = summarise(before).estimates
    new = {} if after is None else summarise(after).estimates
    differences = {} if after is None else compare(before, after).estimates
    rows: list[Row] = []
    for language, estimates in old.items():
        english, chinese = _GROUPS[language]
        for name, estimate in estimates.items():
            metric = METRICS[name]
            rows.append(
                Row(
                    key=f"{language}.{name}",
                    english=f"{english}: {metric.english}",
                    chinese=f"{chinese}：{metric.chinese}",
                    before=estimate,
                    after=new[language][name] if after is not None else None,
                    difference=differences[language][name] if after is not None else None,
                    is_rate=metric.is_rate,
                    better=metric.better,
                )
            )
    return rows


def table(rows: Sequence[Row], *, title: str = "", names: tuple[str, str] = ("before 之前", "after 之后")) -> Table:
    """A table to print; rates in per cent, their differences in percentage points, every number with its interval."""
    built = Table(title=title or None, caption="95% intervals; n = items. 区间为 95% 置信区间，n 为条目数。")
    paired = any(row.difference is not None for row in rows)
    built.add_column("metric 指标", overflow="fold")  # Chinese names have no spaces to break at
    built.add_column("n", justify="right")
    built.add_column(names[0], justify="right")
    if paired:
        built.add_column(names[1], justify="right")
        built.add_column("difference 差异", justify="right")
        built.add_column("")
    for row in rows:
        cells: list[Text] = [Text(f"{row.english}\n{row.chinese}"), Text(str(row.before.count))]
        cells.append(Text(_number(row.before, is_rate=row.is_rate)))
        if paired:
            cells.append(Text("" if row.after is None else _number(row.after, is_rate=row.is_rate)))
            cells.append(
                Text("" if row.difference is None else _number(row.difference, is_rate=row.is_rate, signed=True))
            )
            word, style = _CHANGES[row.change] if row.change else ("", "")
            cells.append(Text(word, style=style))
        built.add_row(*cells)
    return built


def to_dict(rows: Sequence[Row]) -> dict[str, object]:
    """The rows by key, ready for `json.dumps`; an infinite bound is None."""
    return {
        row.key: {
            "label": {"en": row.english, "zh": row.chinese},
            "kind": "rate" if row.is_rate else "mean",
            "better": row.better or None,
            "before": _plain(row.before),
            "after": _plain(row.after),
            "difference": _plain(row.difference),
            "change": row.change,
        }
        for row in rows
    }


def _plain(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    if estimate is None:
        return None
    low, high = (bound if math.isfinite(bound) else None for bound in (estimate.low, estimate.high))
    return {"value": estimate.value, "low": low, "high": high, "count": estimate.count}


def _number(estimate: Estimate, *, is_rate: bool, signed: bool = False) -> str:
    scale = 100 if is_rate else 1
    digits = 1 if is_rate or abs(estimate.value) >= 100 else 3
    sign = "+" if signed else ""
    value, low, high = (f"{scale * one:{sign}.{digits}f}" for one in (estimate.value, estimate.low, estimate.high))
    unit = "" if not is_rate else " pp" if signed else "%"
    return f"{value}{unit}\n[{low}, {high}]"
