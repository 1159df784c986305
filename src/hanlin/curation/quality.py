"""Answers and documents that are bad on their face: endless, repeating, cut off, garbled, refusing, web debris.

Thresholds of documents are Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1) and FineWeb's (Penedo et al. 2024,
arXiv 2406.17557, §3.6), counted in Han characters and Latin words instead of words, since Chinese has no spaces.
"""

import re
from collections import Counter
from itertools import pairwise

import numpy as np

from hanlin.curation.characters import SUSPECT, WIDE
from hanlin.curation.periods import TIMES, may_repeat
from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection

SHORTEST, LONGEST = 1, 20_000  # units (Han characters and Latin words) of an answer
_UNIT = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[A-Za-z\u00c0-\u024f]+|\d+")
_DIGITS = tuple(b"%d" % digit for digit in range(10))
_REPEATED = re.compile(r"([^\d\s=\-_*#.|+~·•—–…─━]{1,30}?|(?:[^\d\s=\-_*#.|+~·•—–…─━] ?){1,15}?)\1{11,}")
_BEHIND_PARTS = 0xF0000  # from here on characters for private use, a different one behind each part
_NEVER_REPEATED = re.compile(r"[\d=\-_*#.|+~·•—–…─━]|[^\S ]|  ")
_PIECE_END = re.compile(r"[\n。！？!?.](?:(?<!\.)|\s)")  # a full stop only before a space; begun by a set, so quick
_OF_MARKUP = re.compile(r"(?<![</\w])(?:html|css)(?!\w)|标签|標籤")
_ENDS = re.compile(r"[。！？!?.…”\"』」）)\]}》>`*~:：;；|_、$%°\d\u2600-\u27bf\U0001f000-\U0001faff~～—-]\s*$")
_CUT = re.compile(
    r"(?:[，,、]|[（(][^）)]{0,20}|\b(?:the|a|an|and|or|of|to|with|for|in|on|by|is|are|that|which|because)|[的和与及或是在把被对为])\s*$",
    re.I,
)
_GARBLED = re.compile(
    r"\ufffd|锟斤拷|烫烫烫|屯屯屯|ï»¿|â€[™œ\u009d“”˜]|Ã[\u00a0-\u00bf©¨¼¶¤]|å[\u0080-\u00bf][\u0080-\u00bf]|[\u00e4-\u00e9][\u0080-\u00bf]{2}|锘縷|鈥[渕檚]|[\ue000-\uf8ff]{2}"
    r"|[\x00-\x08\x0b\x0e-\x1f]"
)
_REFUSAL_ZH = re.compile(
    r"^(?:非常|很)?(?:抱歉|对不起|不好意思|對不起)[，,。！!]?(?:但?是?)?(?:我|作为|作為|您|由于|目前)[^。！？\n]{0,40}?(?:无法|不能|不可以|没有办法|沒有辦法|無法|没法|不便|不会)"
    r"|^(?:作为|作為|身为)(?:一个|一個|一名)?[^，。\n]{0,12}(?:AI|人工智能|语言模型|語言模型|助手)[^。\n]{0,20}?(?:无法|不能|没有|無法)|^我(?:无法|不能|無法)(?:回答|提供|协助|帮助|生成|满足|完成)"
)
_REFUSAL_EN = re.compile(
    r"^(?:i'?m (?:very |really |so |truly )?sorry|i apologi[sz]e|sorry|my apologies|unfortunately)[,.!]?(?: "
    r"but)?[^.!?\n]{0,40}?(?:can'?t|cannot|can not|am not able|'m not able|unable|won'?t|do(?:n'?t| not) have)"
    r"|^as an? (?:ai|artificial|large|language)[^.\n]{0,60}?(?:can'?t|cannot|am not able|'m not able|unable|do"
    r"(?:n'?t| not) have)|^i (?:can'?t|cannot|can not|won't|am unable to|'m not able to) (?:assist|help|provide"
    r"|fulfil|comply|create|generate|answer|do that)",
    re.I,
)
_DEBRIS = re.compile(
    r"<(?:/?(?:div|span|p|font|script|style|iframe|table|tr|td|body|html)\b[^<>\n]{0,200})>|&(?:nbsp|amp|lt|gt|quot|#\d{2,5});|<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|user|assistant|system)\|>"
    r"|<(?:start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>|^(?:###? ?(?:Human|Assistant|Instruction|Response)"
    r"|USER|ASSISTANT|Human|Assistant) ?:",
    re.M,
)
_TAG_OR_ENTITY = re.compile(r"&|<(?!\||start|end|<)")
_DEBRIS_SIGNS = ("<", "&", "INST]", "Human", "Assistant", "Instruction", "Response", "USER", "ASSISTANT")


def check_length(text: Text, around: Around) -> Verdict:
    """The rule `length`: an answer without a letter or digit, or beyond 20,000 units."""
    if not any(map(str.isalnum, text.raw[:2000])) and not text.raw.strip():
        return objection("empty")
    return objection(f"{text.size} units, at most {LONGEST}") if text.size > LONGEST else KEEP


def check_repetition(text: Text, around: Around) -> Verdict:
    """The rule `repetition`: a stretch twelve times in a row, one line or sentence most of it, or few 8-grams."""
    raw = text.raw
    if _may_repeat(raw[:40_000]) and (match := _REPEATED.search(raw, 0, 40_000)):
        return objection("one stretch many times in a row", (Span(*match.span(), "repetition"),))
    pieces = [piece.strip() for piece in _PIECE_END.split(raw[:40_000])]
    pieces = [piece for piece in pieces if len(piece) > (8 if piece.isascii() else 4)]
    if len(pieces) >= 8 and len(pieces) - len(set(pieces)) >= 5:
        piece, count = Counter(pieces).most_common(1)[0]
        if count >= 6 and 2 * count > len(pieces):
            start = raw.find(piece)
            return objection(f"one sentence {count} times", (Span(start, start + len(piece), "repetition"),))
    if text.size >= 200 and not _varies(text):
        units = _UNIT.findall(raw, 0, 20_000)
        grams = list(zip(*(units[index:] for index in range(8)), strict=False))
        if grams and len(set(grams)) < 0.35 * len(grams):
            return objection(f"{1 - len(set(grams)) / len(grams):.0%} of its 8-grams repeat")
    return KEEP


def _may_repeat(raw: str) -> bool:
    """Whether `_REPEATED` can find anything: by the whole text, then by the parts of which a stretch leaves none."""
    if not may_repeat(raw):
        return False
    parts = (part for part in _NEVER_REPEATED.split(raw) if len(part) >= TIMES)
    return may_repeat("".join(part + chr(_BEHIND_PARTS + number) for number, part in enumerate(parts)))


def _varies(text: Text) -> bool:
    """True only where 0.35 of the 8-grams are different: each different pair of units but those at the end starts a
    different 8-gram, so enough different pairs in a part of the text will do.
    """
    most = text.size + sum(map(text.outline.count, _DIGITS))  # at least as many as there are units
    if _num_beginnings(text) - 7 >= 0.35 * (most - 7):
        return True
    seen: set[tuple[str, str]] = set()
    for start in range(0, min(len(text.raw), 20_000), 1000):
        seen.update(pairwise(_UNIT.findall(text.raw, start, start + 1000)))
        # One unit may have been cut at each end of a part.
        if len(seen) - 6 - 2 * (start // 1000 + 1) >= 0.35 * (most - 7):
            return True
    return False


def _num_beginnings(text: Text) -> int:
    """Different words and pairs of Han characters, each of which begins an 8-gram but in the last seven places; 0 where
    counting them so would not be exact.
    """
    if text.has(WIDE) or len(text.raw) > 20_000:
        return 0
    if not text.num_han:
        return len(text.vocabulary)
    codes = np.frombuffer(text.raw.encode("utf-16-le", "surrogatepass"), np.uint16)
    han = ((codes >= 0x4E00) & (codes < 0xA000)) | ((codes >= 0x3400) & (codes < 0x4DC0))
    beside = han[:-1] & han[1:]
    pairs = np.sort(codes[:-1][beside].astype(np.uint32) << 16 | codes[1:][beside])
    return len(text.vocabulary) + int(np.count_nonzero(np.diff(pairs))) + bool(len(pairs))


def check_ending(text: Text, around: Around) -> Verdict:
    """The rule `ending`: cut off in the middle of a sentence or inside a fence."""
    raw = text.raw.rstrip()
    if raw.count("```") % 2:
        return objection("ends inside a code fence", (Span(raw.rfind("```"), len(raw), "ending"),))
    if text.size < 20 or _ENDS.search(raw[-4:]) or "```" in raw[-400:]:
        return KEEP
    if match := _CUT.search(raw, max(0, len(raw) - 40)):
        return objection("ends in the middle of a sentence", (Span(*match.span(), "ending"),))
    return KEEP


def check_garbled(text: Text, around: Around) -> Verdict:
    """The rule `garbled`: replacement characters, the debris of a wrong decoding, control and private characters."""
    if not text.has(SUSPECT):
        return KEEP
    match = _GARBLED.search(text.raw)
    return objection("wrongly decoded", (Span(*match.span(), "garbled"),)) if match else KEEP


def check_refusal(text: Text, around: Around) -> Verdict:
    """The rule `refusal`: a refusal's boiler-plate and nothing else; a long answer that opens so passes."""
    if text.size > 220:
        return KEEP
    head = text.raw.lstrip()[:160].replace("’", "'")
    if _REFUSAL_ZH.match(head) or _REFUSAL_EN.match(head):
        return objection("a refusal", (Span(0, min(len(text.raw), 160), "refusal"),))
    return KEEP


def check_markup(text: Text, around: Around) -> Verdict:
    """The rule `markup`: HTML tags and entities outside code, or another chat template's control pieces."""
    raw = text.raw
    if not any(sign in raw for sign in _DEBRIS_SIGNS):
        return KEEP
    found: list[Span] = []
    meant = None  # whether tags and entities are what the answer is about; asked only where there are any
    for match in _DEBRIS.finditer(raw):
        if _TAG_OR_ENTITY.match(match[0]):
            meant = _speaks_of_markup(text, around) if meant is None else meant
            if meant:
                continue
        found.append(Span(*match.span(), "markup"))
        if len(found) >= 20:
            break
    return objection("markup debris", tuple(found)) if found else KEEP


def _speaks_of_markup(text: Text, around: Around) -> bool:
    asked = around.prompt is not None and ("<" in around.prompt.raw or "html" in around.prompt.lowered)
    return asked or "`" in text.raw or bool(_OF_MARKUP.search(text.lowered))


def check_document(text: Text, around: Around) -> Verdict:
    """The rule `document`: Gopher's and FineWeb's thresholds on lines, signs, letters and lists."""
    lines = [line for line in (line.strip() for line in text.lines) if line]
    if text.size < 50 or text.size > 100_000:
        return objection(f"{text.size} units; expected 50 to 100,000")
    letters = text.num_han + sum(map(len, text.words))
    visible = len(text.raw) - text.raw.count(" ") - text.raw.count("\n")
    if 2 * letters < visible:
        return objection("fewer letters than other signs")
    if (text.raw.count("#") + text.raw.count("…") + text.raw.count("...")) > 0.1 * text.size:
        return objection("too many # and …")
    if text.words and text.num_han < len(text.words) and not 3 <= sum(map(len, text.words)) / len(text.words) <= 10:
        return objection("words too short or too long")
    if sum(line[0] in "•●-*·" for line in lines) > 0.9 * len(lines):
        return objection("nearly every line is a bullet")
    if sum(line.endswith(("...", "…", "……")) for line in lines) > 0.3 * len(lines):
        return objection("lines end in …")
    duplicated = sum(len(line) * (count - 1) for line, count in Counter(lines).items() if count > 1)
    if duplicated > 0.2 * visible:
        return objection("repeated lines")
    if (
        len(lines) > 10
        and sum(len(line) < 30 for line in lines) > 0.67 * len(lines)
        and text.num_han < 2 * len(text.words)
    ):
        return objection("mostly short lines")
    return KEEP


_SENTENCE = "春天来了，公园里的花都开了，我们一起去看看吧，顺便带上水和面包，"
RULES = (
    Rule("length", 1, "no text, or too much", "过短或过长", "this project", check_length, ("好。",), (" \n",)),
    Rule(
        "repetition",
        2,
        "repeats itself",
        "重复",
        "Gopher, arXiv 2112.11446, table A1",
        check_repetition,
        ("哈哈哈", "-" * 80, "啦啦啦，\n" * 4),
        ("你好" * 20, "the " * 16, "Beijing is the capital of China. " * 12, "北京有故宫。\n" * 12),
    ),
    Rule(
        "ending",
        1,
        "cut off",
        "结尾被截断",
        "this project",
        check_ending,
        (f"{_SENTENCE}好吗？",),
        (_SENTENCE, "看：```python\nx = 1"),
    ),
    Rule(
        "garbled",
        1,
        "wrongly decoded",
        "乱码",
        "ftfy's list of mojibake; GBK's 锟斤拷",
        check_garbled,
        ("café", "你好"),
        ("锟斤拷", "donâ€™t", "\ufffd"),
    ),
    Rule(
        "refusal",
        1,
        "a refusal and nothing else",
        "拒答套话",
        "this project",
        check_refusal,
        ("抱歉，我来晚了。",),
        ("对不起，我无法回答这个问题。", "I'm sorry, but I can't help with that."),
    ),
    Rule(
        "markup",
        2,
        "web or template debris",
        "标记残留",
        "this project",
        check_markup,
        ("用 `<div>` 标签", "a < b", "A <div> is a generic HTML element."),
        ("<div class=x>你好</div>", "你好<|im_end|>", "a&nbsp;b"),
    ),
)
DOCUMENT = Rule(
    "document",
    1,
    "not prose",
    "不像正文",
    "Gopher (2112.11446, A1), FineWeb (2406.17557, §3.6)",
    check_document,
    (_SENTENCE * 4,),
    ("短。",),
)
