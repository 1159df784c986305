"""The quick looks never hide what the slow ones would find."""

import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from hanlin.curation import contacts, pairs, quality
from hanlin.curation.characters import SUSPECT
from hanlin.curation.languages import quick_language
from hanlin.curation.periods import LONGEST, TIMES, may_repeat
from hanlin.curation.quality import check_repetition
from hanlin.curation.rule import Around, Text
from hanlin.curation.secrets import _KNOWN, _NAMED, find_secrets, is_random

ALPHABETS = ("天地玄黄宇宙洪荒日月盈昃", "abcdefghij klmnop", "ab", "好 ", "1.-好", "a. b!\n", "ａa日é 1")


def slowly(text: Text) -> bool:
    """The rule `repetition` without quick looks."""
    raw = text.raw
    if quality._REPEATED.search(raw, 0, 40_000):
        return True
    lines = [line.strip() for line in re.split(r"[\n。！？!?]|\.\s", raw[:40_000])]
    lines = [line for line in lines if len(line) > (8 if line.isascii() else 4)]
    if len(lines) >= 8:
        _, count = Counter(lines).most_common(1)[0]
        if count >= 6 and 2 * count > len(lines):
            return True
    if text.size < 200:
        return False
    units = re.findall(r"[\u3400-\u9fff]|[A-Za-z\u00c0-\u024f]+|\d+", raw[:20_000])
    grams = [tuple(units[place : place + 8]) for place in range(len(units) - 7)]
    return bool(grams) and len(set(grams)) < 0.35 * len(grams)


@pytest.mark.parametrize("period", range(1, LONGEST + 1))
def test_every_stretch_that_stands_twelve_times_is_seen_wherever_it_stands(period: int) -> None:
    draw = random.Random(period)
    for before in (*range(9), 37, 250):
        stretch = "".join(draw.choice("天地玄黄宇宙洪荒") for _ in range(period))
        text = "".join(chr(0x4E00 + draw.randrange(5000)) for _ in range(before)) + stretch * TIMES + "完"
        assert may_repeat(text)
        assert not check_repetition(Text(text), Around()).keep


def test_ordinary_text_is_ruled_out() -> None:
    draw = random.Random(1)
    texts = ["".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(1500)) for _ in range(50)]
    assert sum(may_repeat(text) for text in texts) == 0
    assert not may_repeat("")
    assert not may_repeat("哈哈哈")


def test_the_rule_says_what_it_said_without_the_quick_looks() -> None:
    draw = random.Random(7)
    objections = 0
    for _ in range(400):
        alphabet = draw.choice(ALPHABETS)
        stretch = "".join(draw.choice(alphabet) for _ in range(draw.randint(1, 400)))
        pieces = [stretch[: draw.randint(1, len(stretch))] * draw.randint(1, 14) for _ in range(draw.randint(1, 6))]
        text = Text(draw.choice(("", "\n", "。")).join(pieces)[:30_000])
        objected = not check_repetition(text, Around()).keep
        assert objected == slowly(text)
        objections += objected
    assert 50 < objections < 380


WORDS = (
    "the model answers",
    "what is",
    "l'eau est dans la mer avec une",
    "und das ist nicht gut",
    "“quoted” — words",
    "ünïcödé",
)


def test_the_quick_language_is_that_of_the_full_measure() -> None:
    draw = random.Random(3)
    for _ in range(300):
        text = Text(
            " ".join(draw.choice(WORDS[:2] if draw.random() < 0.6 else WORDS) for _ in range(draw.randint(1, 12)))
        )
        if not text.raw.isascii() or len(text.words) < 20:
            assert quick_language(text) == text.evidence.language, text.raw


def test_handles_and_secrets_are_found_wherever_the_pattern_finds_them() -> None:
    pieces = (
        "微信",
        "QQ",
        "online ",
        "Line id: ",
        "wx_id99",
        "abcdef12",
        "：",
        " ",
        "加",
        "12345678",
        "V信",
        "WeChat",
        "：@ab_12",
    )
    draw = random.Random(11)
    for _ in range(3000):
        text = Text("".join(draw.choice(pieces) for _ in range(draw.randint(2, 9))))
        found = [match.span() for match in contacts._named_handles(text, *contacts._apps(text))]
        assert found == [match.span() for match in contacts._HANDLE.finditer(text.folded)], text.raw


PIECES = (
    "a",
    "B",
    "é",
    "Ａ",
    "好",
    "裡",
    " ",
    "\n",
    "7",
    ".",
    "\x07",
    "\t",
    "’",
    "ﬁ",
    "①",
    "\u0301",
    "，",
    "\ud800",
    "𠀀",
)


def some_texts(count: int, pieces: tuple[str, ...] = PIECES, longest: int = 12) -> list[str]:
    draw = random.Random(13)
    return ["".join(draw.choice(pieces) for _ in range(draw.randint(0, longest))) for _ in range(count)]


def test_counted_words_and_kinds_are_those_that_are_looked_at_one_by_one() -> None:
    for raw in some_texts(2000):
        assert Text(raw).num_words == len(Text(raw).words), raw
        assert Text(raw).has(SUSPECT) == bool((Text(raw).kinds & SUSPECT).any()), raw


def test_answers_whose_first_and_last_letters_differ_are_apart() -> None:
    texts, apart = some_texts(20_000, (*PIECES, *"xyz天地玄黄1234"), 5), 0
    for one, other in pairwise(texts):
        if pairs._letters_apart(one, other):
            bare = [pairs.bare(text) for text in (one, other)]
            assert bare[0][0] != bare[1][0], (one, other)
            assert bare[0][-1] != bare[1][-1], (one, other)
            apart += 1
    assert apart > 50


def test_keys_are_found_where_they_are_found_in_the_whole_text() -> None:
    keys = (
        "sk-Ab3dEf6hIj9kLm2nOp5qRs8t",
        "ghp_Ab3dEf6hIj9kLm2nOp5qRs8tUv4wXy",
        "LTAI5tAb3dEf6hIj9k",
        "AKIAQ3EGUVAB7XKZ2M4N",
    )
    pieces = (
        *keys,
        " ",
        "。",
        "api_key = ",
        "token: ",
        "密钥：",
        "Xq7Ab3dEf6hIj9kLm2",
        "a",
        "-",
        "incomprehensibilities",
    )
    for raw in some_texts(1500, pieces, 6):
        found = {(span.start, span.end) for span in find_secrets(Text(raw))}
        for _, pattern in _KNOWN:
            assert {match.span() for match in pattern.finditer(raw) if is_random(match[0])} <= found, raw
        for match in _NAMED.finditer(raw):
            key = match[1]
            if is_random(key) and any(map(str.isdigit, key)) and any(map(str.isalpha, key)) and "/" not in key[:2]:
                assert match.span(1) in found, raw
