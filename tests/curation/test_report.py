"""The report is one static page that says all in both languages, adds up, and shows text as text."""

import re
from html.parser import HTMLParser

from hanlin.curation.contamination import BenchmarkReport
from hanlin.curation.policy import SIDE_RULES
from hanlin.curation.report import NAMES, names_of, page

COUNTS = {
    "read|a.jsonl": 90,
    "read|<b>.jsonl": 10,
    "aside|not UTF-8": 2,
    "dropped|language": 7,
    "dropped|duplicate_pair": 5,
    "passed|a.jsonl": 83,
    "passed|<b>.jsonl": 8,
    "decision|chosen|language|drop": 7,
    "decision|row|duplicate_pair|drop": 5,
    "decision|prompt|personal|mask": 3,
    "decision|chosen|toxic|flag": 4,
    "by source|a.jsonl|duplicate_pair|drop": 5,
    "by source|a.jsonl|personal|mask": 3,
    "by source|a.jsonl|toxic|flag": 4,
    "length|chosen|10": 40,
    "length|chosen|0": 51,
    "language|chosen|Han": 91,
    "written|all": 86,
}
SAMPLE = {
    "row": "a.jsonl:3",
    "side": "prompt",
    "action": "mask",
    "reason": "phone",
    "before": "<script>alert(1)</script>",
    "after": "[手机号]",
}


class Spans(HTMLParser):
    """What the page says in either language, in order, and the names of all its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.language = dict(attrs).get("lang") or "" if tag == "span" else ""

    def handle_endtag(self, tag: str) -> None:
        self.language = ""

    def handle_data(self, data: str) -> None:
        if self.language:
            self.said.append((self.language, data))


def parsed() -> tuple[str, Spans]:
    told = page(COUNTS, {"personal": [SAMPLE]}, [BenchmarkReport("ceval.csv", 4, 1, 2, 3, 0.75, 1.0)])
    spans = Spans()
    spans.feed(told)
    return told, spans


def test_the_page_needs_nothing_and_shows_text_as_text() -> None:
    told, spans = parsed()
    assert not {"script", "link", "img", "iframe", "b.jsonl"} & spans.tags
    assert not [word for word in ("http", "url(", "@import") if word in told]
    assert "&lt;script&gt;alert(1)" in told


def test_whatever_is_said_in_english_is_said_in_chinese() -> None:
    _, spans = parsed()
    assert [language for language, _ in spans.said] == ["en", "zh"] * (len(spans.said) // 2)
    for (_, english), (_, chinese) in zip(spans.said[::2], spans.said[1::2], strict=True):
        assert re.search("[\u4e00-\u9fff]", chinese), english
        assert not re.search("[\u4e00-\u9fff]", english), chinese


def test_every_rule_has_a_name_in_both_languages() -> None:
    for rule in (*SIDE_RULES, *NAMES):
        english, chinese = names_of(rule)
        assert re.search("[\u4e00-\u9fff]", chinese), rule
        assert english.isascii(), rule


def test_the_funnel_ends_with_what_was_written() -> None:
    told, _ = parsed()
    lines = re.findall(r"−(\d+)<td class=n>[\d.]+%<td class=n>(\d+)", told)
    left = 100
    for lost, after in lines:
        left -= int(lost)
        assert int(after) == left
    assert left == COUNTS["written|all"]
    assert [int(share) for share in re.findall(r"style='flex:(\d+)", told)][:3] == [86, 12, 2]


def test_a_run_of_no_rows_makes_a_page() -> None:
    assert "</html>" in page({}, {})
