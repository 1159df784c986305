"""report.html: what a run read, dropped, changed and left, on one static page that needs no network and no script.

Every text stands there in English and in Chinese, and two radio buttons hide the one or the other; bars and columns are
boxes whose size is a style. It is light or dark as the reader's system is.
"""

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hanlin.curation.contamination import BenchmarkReport
from hanlin.curation.policy import SIDE_RULES
from hanlin.curation.report_style import STYLE

NAMES = {
    "toxic": ("toxic", "有害内容"),
    "guard": ("a guard model objects", "守卫模型判为有害"),
    "contaminated": ("holds a benchmark item", "含评测题"),
    "pair_equal": ("equal answers", "两答相同"),
    "pair_gap": ("lengths far apart", "长度悬殊"),
    "pair_both": ("both fail one rule", "两答同犯"),
    "pair_worse": ("chosen is worse", "优选更差"),
    "duplicate_exact": ("the same row again", "完全重复"),
    "duplicate_prompt": ("a similar prompt", "提问近似"),
    "duplicate_prompt_chosen": ("similar prompt and answer", "提问与优选近似"),
    "duplicate_pair": ("a similar row", "整行近似"),
}
_SIDES = {
    "prompt": "提问",
    "chosen": "优选",
    "rejected": "劣选",
    "user": "用户",
    "assistant": "助手",
    "tool": "工具",
    "document": "文档",
    "pair": "两答",
    "row": "整行",
}
_ACTIONS = {"drop": "去除", "mask": "打码", "replace": "替换", "rewrite": "改写", "flag": "标记"}
_ACTIONS |= {"to_rejected": "转为劣选"}
_PLOT = ("", "")  # the head of a column of bars
_SCRIPTS = {"Han": ("Chinese", "中文"), "Latin": ("Latin script", "拉丁文字"), "none": ("no words", "无文字")}


def both(english: str, chinese: str) -> str:
    """A text in both languages, of which the page shows one."""
    return f"<span lang=en>{html.escape(english)}</span><span lang=zh>{html.escape(chinese)}</span>"


def names_of(rule: str) -> tuple[str, str]:
    """A rule's name in English and Chinese."""
    if rule in SIDE_RULES:
        return SIDE_RULES[rule].english, SIDE_RULES[rule].chinese
    return NAMES.get(rule, (rule, rule))


def under(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The counts whose names begin with `prefix` and a bar, without it; the largest first."""
    found = {name.removeprefix(prefix + "|"): count for name, count in counts.items() if name.startswith(prefix + "|")}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def page(
    counts: Mapping[str, int],
    samples: Mapping[str, list[dict[str, Any]]],
    benchmarks: Sequence[BenchmarkReport] = (),
) -> str:
    """The whole page."""
    return (
        "<!doctype html><html lang=zh><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Hanlin 数据清洗报告 curation report</title><style>{STYLE}</style><body>"
        "<input type=radio name=language id=zh checked><input type=radio name=language id=en><main>"
        f"<header><h1>{both('Curation report', '数据清洗报告')}</h1>"
        "<nav><label for=zh>中文</label><label for=en>English</label></nav></header>"
        + _tiles(counts)
        + _losses(counts)
        + _rules(counts)
        + _sources(counts)
        + _benchmarks(benchmarks)
        + _texts(counts)
        + _samples(samples)
        + "</main></body></html>\n"
    )


def _section(english: str, chinese: str, inner: str, note: tuple[str, str] | None = None) -> str:
    said = f"<p>{both(*note)}</p>" if note else ""
    return f"<section><h2>{both(english, chinese)}</h2>{said}{inner}</section>" if inner else ""


def _table(columns: Sequence[tuple[str, str]], lines: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Cells are HTML; all columns but the first `texts` are numbers."""
    if not lines:
        return ""
    kinds = ["plot" if name == _PLOT else "n" if index >= texts else "t" for index, name in enumerate(columns)]
    head = "".join(f"<th class={kind}>{both(*name)}" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td class={kind}>{cell}" for kind, cell in zip(kinds, line, strict=True)) for line in lines
    )
    return f"<div class=wide><table><tr>{head}{body}</table></div>"


def _bar(count: int, most: int, kind: str) -> str:
    return f"<i class='bar {kind}' style='--v:{100 * count / most:.1f}%'></i>" if count else ""


def _rule(rule: str) -> str:
    return f"{both(*names_of(rule))} <code>{html.escape(rule)}</code>"


def _action(action: str) -> str:
    return f"<b class='chip {action}'>{both(action.replace('_', ' '), _ACTIONS.get(action, action))}</b>"


def _side_name(side: str) -> str:
    return both(side, _SIDES.get(side, side))


def _tiles(counts: Mapping[str, int]) -> str:
    read, written = sum(under(counts, "read").values()), counts.get("written|all", 0)
    actions: dict[str, int] = defaultdict(int)
    for name, count in under(counts, "decision").items():
        actions[name.rpartition("|")[2]] += count
    flags = actions.pop("flag", 0)
    edits = sum(count for action, count in actions.items() if action != "drop")
    tiles = (
        (read, "rows read", "读入行"),
        (written, f"rows written, {written / max(1, read):.1%}", f"写出行，{written / max(1, read):.1%}"),
        (edits, "texts changed", "处修改"),
        (flags, "flags", "处标记"),
    )
    boxes = "".join(f"<div><b>{number:,}</b>{both(*said)}</div>" for number, *said in tiles)
    return f"<div class=tiles>{boxes}</div>"


def _losses(counts: Mapping[str, int]) -> str:
    """The funnel: a strip of all rows, and below what took a part of it and how many were left then."""
    read = left = sum(under(counts, "read").values())
    aside, dropped = under(counts, "aside"), under(counts, "dropped")
    strip = {
        "kept": ("written", "写出", counts.get("written|all", 0)),
        "drop": ("dropped", "去除", sum(dropped.values())),
        "aside": ("set aside", "搁置", sum(aside.values())),
    }
    lost = [(f"{both('set aside', '搁置')}: {html.escape(why)}", rows, "aside") for why, rows in aside.items()]
    lost += [(_rule(rule), rows, "drop") for rule, rows in dropped.items()]
    lines, most = [], max((rows for _, rows, _ in lost), default=1)
    for name, rows, kind in lost:
        left -= rows
        lines.append((name, _bar(rows, most, kind), f"−{rows:,}", f"{rows / max(1, read):.1%}", f"{left:,}"))
    columns = (("reason", "原因"), _PLOT, ("rows", "行数"), ("of all", "占比"), ("left", "剩余"))
    return _section("What became of the rows", "数据去向", _strip(strip) + _table(columns, lines))


def _strip(parts: Mapping[str, tuple[str, str, int]]) -> str:
    """Parts of a whole side by side, each of a class of the style, and a key to them with their shares."""
    total = sum(count for _, _, count in parts.values())
    there = {kind: part for kind, part in parts.items() if part[2]}
    boxes = "".join(f"<i class={kind} style='flex:{count}'></i>" for kind, (_, _, count) in there.items())
    key = "".join(
        f"<span><i class={kind}></i>{both(english, chinese)} {count / total:.1%}</span>"
        for kind, (english, chinese, count) in there.items()
    )
    return f"<div class=strip>{boxes}</div><div class=key>{key}</div>"


def _rules(counts: Mapping[str, int]) -> str:
    found = under(counts, "decision")
    most = max(found.values(), default=1)
    lines = []
    for name, count in found.items():
        side, rule, action = name.split("|")
        shown = _side_name(side)
        lines.append((_rule(rule), shown, _action(action), _bar(count, most, action), f"{count:,}"))
    columns = (("rule", "规则"), ("where", "位置"), ("action", "处理"), _PLOT, ("times", "次数"))
    note = ("One row may be objected to more than once.", "同一行可能命中多次。")
    return _section("By rule", "按规则", _table(columns, lines, texts=3), note)


def _sources(counts: Mapping[str, int]) -> str:
    read, passed = under(counts, "read"), under(counts, "passed")
    told: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, count in under(counts, "by source").items():
        source, rule, action = name.split("|")
        kind = "again" if rule.startswith("duplicate_") else action if action in ("drop", "flag") else "edit"
        told[source][kind] += count
    lines = [
        (
            html.escape(source),
            _bar(passed.get(source, 0), rows, "kept"),
            f"{rows:,}",
            f"{passed.get(source, 0):,}",
            *(f"{told[source][kind]:,}" for kind in ("again", "edit", "flag")),
        )
        for source, rows in read.items()
    ]
    columns = (("source", "来源"), _PLOT, ("rows", "行数"), ("past the rules", "通过规则"))
    columns += (("duplicates", "重复"), ("changes", "修改"), ("flags", "标记"))
    return _section("By source", "按来源", _table(columns, lines))


def _benchmarks(reports: Sequence[BenchmarkReport]) -> str:
    lines = []
    for one in reports:
        mean, most = (f"{share:.0%}" if one.hit else "–" for share in (one.coverage, one.most))
        numbers = (f"{number:,}" for number in (one.items, one.too_short, one.hit, one.rows))
        lines.append((html.escape(one.name), _bar(one.hit, one.items, "drop"), *numbers, mean, most))
    columns = (("benchmark", "评测集"), _PLOT, ("items", "题数"), ("too short", "过短"), ("found", "命中"))
    columns += (("rows", "行数"), ("mean", "平均"), ("most", "最高"))
    note = (
        "Items in rows that passed the rules; such rows were dropped.",
        "通过规则的行中出现的评测题；含题的行已去除。",
    )
    return _section("Benchmark items", "评测题泄漏", _table(columns, lines), note)


def _texts(counts: Mapping[str, int]) -> str:
    """Small columns of lengths and a strip of languages for each side."""
    lengths: dict[str, dict[int, int]] = defaultdict(dict)
    for name, count in under(counts, "length").items():
        side, limit = name.split("|")
        lengths[side][int(limit)] = count
    languages: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in under(counts, "language").items():
        side, script = name.split("|")
        languages[side][script] = count
    shown = [side for side in _SIDES if side in lengths]
    cards = "".join(_side(side, lengths[side], languages[side]) for side in shown)
    note = (
        "Of the texts that the rules left; a column counts those of at most so many Han characters and words.",
        "规则留下的文本；每一柱是不超过该长度（汉字与单词数）的文本。",
    )
    return _section("Lengths and languages", "长度与语言", f"<div class=cards>{cards}</div>" if cards else "", note)


def _side(side: str, lengths: Mapping[int, int], languages: Mapping[str, int]) -> str:
    limits = (10, 30, 100, 300, 1000, 3000, 10_000, 0)
    most = max(lengths.values())
    columns = "".join(
        f"<div><b style='--v:{100 * lengths.get(limit, 0) / most:.1f}%'></b>"
        f"<small>{(f'{limit // 1000}k' if limit >= 1000 else limit) if limit else '∞'}</small></div>"
        for limit in limits
    )
    strip = _strip({script: (*name, languages.get(script, 0)) for script, name in _SCRIPTS.items()})
    return (
        f"<div class=card><h3>{_side_name(side)} <small>{sum(languages.values()):,}</small></h3>"
        f"<div class=columns>{columns}</div>{strip}</div>"
    )


def _samples(samples: Mapping[str, list[dict[str, Any]]]) -> str:
    note = (
        "Drawn by chance; precision.csv holds the same, to fill in.",
        "随机抽取；precision.csv 可供填写。",
    )
    rules = "".join(_sample(rule, found) for rule, found in sorted(samples.items()))
    return _section("Samples", "样例", rules, note)


def _sample(rule: str, found: list[dict[str, Any]]) -> str:
    items = []
    for one in found:
        before, after = (f"<q>{html.escape(one[key])}</q>" if one.get(key) else "" for key in ("before", "after"))
        change = f"{before} → {after}" if after else before
        side = _side_name(one["side"])
        said = f"{_action(one['action'])} {html.escape(one['reason'])}"
        items.append(f"<li><small>{html.escape(one['row'])} · {side}</small> {said}<div>{change}</div>")
    return f"<details><summary>{_rule(rule)} <small>{len(found)}</small></summary><ul>{''.join(items)}</ul></details>"
