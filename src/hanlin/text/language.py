"""Which language a text is written in, judged by script: what counts, what does not, and what a bilingual reader says.

Chinese and English are told apart by Han characters and Latin words, which holds for very short lines where trained
detectors fail. What belongs to no language is stripped first: code, formulas, URLs, quoted terms, glosses in brackets,
units. A name is neutral: 用 Python 和 iPhone is Chinese. `mixed` means ordinary words of the other language too:
这个 feature 很 powerful, or 你好 in an English sentence. Nothing here downloads or learns anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hanlin.text.lexicon import (
    CONNECTORS,
    ENDINGS,
    ENGLISH_FUNCTION,
    OPENERS,
    ORDINARY,
    OTHER_FUNCTION,
    SIMPLIFIED,
    TECHNICAL,
    TRADITIONAL,
)

Language = Literal["zh", "en", "mixed", "other", "none"]

# One Han character is worth 0.6 Latin words: the script-ratio rule that judged 33 of 33 labelled lines right where
# trained detectors got 19 to 33 (measured for this project).
HAN_WORTH = 0.6

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007\U00020000-\U000323af"
_KANA = "\u3041-\u309f\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9d"
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
# Scripts that are neither: Cyrillic, Armenian, Hebrew, Arabic, Indic and South-East Asian, Georgian, Ethiopic, Hangul.
_OTHER = (
    "\u0400-\u052f\u0531-\u058f\u05d0-\u05ea\u0620-\u06d3\u0904-\u0dff\u0e01-\u0eff\u0f40-\u10ff\u1100-\u139f"
    "\u1780-\u17ff\u3131-\u318e\uac00-\ud7a3"
)

_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}

_FENCE = re.compile(r"^[ \t>]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t>]*\1[ \t]*$|\Z)", re.S | re.M)
_PROSE_FENCES = ("", "text", "txt", "markdown", "md", "plaintext", "plain")
_INLINE_CODE = re.compile(r"(``?)[^`\n]+?\1(?!`)")
_CODE_SIGNS = re.compile(r"[{}();=<>$|_\\#│├└]|\w\.\w")
_CODE_LINE = re.compile(
    r"^[ \t]*+(?:"
    r"(?:def|class|return|print|elif|except|finally|#include|using|package|public|private|protected|static|void|int|float"
    r"|double|char|bool|var|let|const|function|func|fn|SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|FROM|WHERE)"
    r"\b[^\n]*[(){};=<>*]"
    r"|import [\w.{][^\n]*[.;'\"]|return [\w.]+[ \t]*$"
    r"|(?:import|from) [\w.]+(?: import [\w., *()]+)?(?: as \w+)?[ \t]*$"
    r"|(?:for|while|if|with|try|else)\b[^\n]*[:{][ \t]*(?:(?:#|//)[^\n]*)?$"
    r"|[\w.\[\]]+[ \t]*[-+*/]?=[ \t]*\S"
    r"|[\w.]+\([^\n]*\)[;,]?[ \t]*$"
    r"|[^\n]*[{}][ \t]*$|(?=[^\n]*[()=\[\]+\"])[^\n]*;[ \t]*$"
    r"|[ {}()\[\];,]+$"
    r"|(?:\$|>>>|\.\.\.) [^\n" + _HAN + r"]*$"
    r")[^\n]*",
    re.M | re.A,
)
_FILES = "py|js|ts|jsonl?|md|txt|csv|html?|css|java|cpp|c|h|go|rs|sh|sql|xml|ya?ml|toml|exe|jpe?g|png|pdf|zip"
_COMMANDS = "pip3?|npm|npx|yarn|git|sudo|apt|apt-get|brew|conda|docker|kubectl|curl|cd|python3?"
_NOT_LANGUAGE = tuple(
    re.compile(pattern, re.S | re.A)
    for pattern in (
        r"<!--.{0,2000}?-->",
        r"\$\$.{1,2000}?\$\$|\\\[.{1,2000}?\\\]|\\\(.{1,500}?\\\)|\\begin\{(\w+\*?)\}.{0,2000}?\\end\{\1\}",
        r"(?<![\\\w$])\$(?=[^\s$])[^$\n]{0,200}?(?<=[^\s\\$])\$(?![\d$])",  # pandoc's rule: $5 and $10 is money
        r"\]\([^)\s]*\)",
        r"(?:https?|ftp)://[^\s" + _HAN + r"，。；！？、（）《》“”]+|www\.[\w./?=&%#-]+",
        r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+",
        r"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|io|cn|ai|dev)\b[\w./?=&%#-]*",
        r"</?[A-Za-z][^<>\n]{0,120}>",
        r"(?:[A-Za-z]:\\|(?<![\w)])(?:~|\.{1,2})?/)[\w.+-]+(?:[\\/][\w.+-]*)*",
        rf"(?<![\w.-])[\w.-]+\.(?:{_FILES})\b",
        rf"\b(?:{_COMMANDS}) [a-z][\w./=-]*(?: [\w./=:@-]+)*",
        r"\b[Hh]ello,? [Ww]orld\b",
        r"(?<![\w.])[\w.]+\([\w., =|+*/\"'-]{0,200}\)",
        r"(?<!\w)(?:--?[A-Za-z][\w-]*|[@#][A-Za-z]\w*)",
        r"\\[a-zA-Z]+|&[a-z]+;",
        r"(?<![\d.,])\d[\d.,]*+[ \t]*(?:[a-zA-Z]{1,3}(?:/[a-zA-Z]{1,3})?|bits?|bytes?|[kmgt]bps|kcal|mmHg)(?![\w'])",
    )
)
_GLOSS = re.compile(rf"(?<=[{_HAN}》”」’*`])([ \t]*[（(])([^（）()\n]{{1,120}})(?=[)）])")
_HAN_GLOSS = re.compile(rf"(?<=[A-Za-z0-9\"”*])[ \t]*[（(][^（）()\n]{{0,40}}[{_HAN}][^（）()\n]{{0,40}}[)）]")
_GLOSSED = re.compile(rf"(?<=[{_HAN}，、])[ \t]?[A-Za-z][\w-]*(?: [A-Za-z][\w-]*){{0,3}}(?=[ \t]*[（(][{_HAN}])", re.A)
_SENTENCE_WORDS = re.compile(r"\b(?:I|you|we|is|are|am|can|will|your|my|was|were)\b", re.I)
_QUOTES = re.compile(
    r"《[^》\n]{1,100}》|〈[^〉\n]{1,100}〉|「[^」\n]{1,200}」|『[^』\n]{1,200}』|“[^”\n]{1,200}”|\"[^\"\n]{1,200}\""
    r"|‘[^’\n]{1,100}’(?!\w)|(?<!\w)'[^'\n]{1,100}'(?!\w)"
)

_WORD = re.compile(rf"[{_LATIN}\d_]+(?:[-'’][{_LATIN}\d_]+)*(?:\+\+|#)?")
_RUN = re.compile(rf"{_WORD.pattern}(?:[ \t]+(?:[&/+-][ \t]+)?{_WORD.pattern})*")
_NEITHER = re.compile(rf"[{_KANA}{_OTHER}]")
_PINYIN = re.compile(r"[āēīōūǖǎěǐǒǔǚ]")


@dataclass(frozen=True, slots=True)
class License:
    """What the prompt allows in an answer: its own Latin words (` a b c `, case-folded) and its own Han characters."""

    latin: str = ""
    han: str = ""

    def allows_run(self, words: list[str]) -> bool:
        return len(words) <= 8 and f" {' '.join(words)} ".casefold() in self.latin


def latin_license(prompt: str) -> License:
    """Lets a Chinese answer use the Latin terms that the prompt itself used, in the prompt's own order."""
    return License(latin=f" {' '.join(_WORD.findall(prompt.translate(_FULL_WIDTH)))} ".casefold())


def han_license(prompt: str) -> License:
    """Lets an English answer use the runs of Han characters that the prompt itself used."""
    return License(han=prompt)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was counted in a text: characters by script, Latin words that count, and which runs are ordinary English."""

    han: int = 0
    kana: int = 0
    other: int = 0
    words: int = 0
    english_function: int = 0
    other_function: int = 0
    runs: tuple[str, ...] = ()

    def __add__(self, more: Evidence) -> Evidence:
        return Evidence(
            self.han + more.han,
            self.kana + more.kana,
            self.other + more.other,
            self.words + more.words,
            self.english_function + more.english_function,
            self.other_function + more.other_function,
            self.runs + more.runs,
        )

    @property
    def english(self) -> int:
        """Words of the runs that are ordinary English."""
        return sum(len(run.split()) for run in self.runs)

    @property
    def stray(self) -> bool:
        """Letters that neither Chinese nor English uses; a single の is decoration."""
        return self.kana >= 2 or self.other >= 2

    @property
    def language(self) -> Language:
        """The language that most of it is in: never "mixed"; "en" when there are only names; "none" without letters."""
        if (self.kana >= 2 and 2 * self.kana >= self.han) or self.other > self.han + 4 * self.words:
            return "other"
        if self.han == 0:
            foreign = self.words >= 5 and self.other_function > max(1, self.english_function)
            return "other" if foreign else "en" if self.words else "none"
        return "zh" if HAN_WORTH * self.han >= self.english else "en"

    @property
    def mixed(self) -> bool:
        """Whether two languages are there, ordinary words of each."""
        return (self.han > 0 and self.english > 0) or (self.stray and self.language != "other")


def strip_code(text: str) -> str:
    """Replace fenced code (an open fence reaches to the end) and inline code by a space."""
    text = _FENCE.sub(lambda fence: "\n" if _is_code(fence[2], fence[3]) else f"\n{fence[3]}\n", text)
    return _INLINE_CODE.sub(" ", text)


def strip_uncounted(text: str, *, quotes: bool = True) -> str:
    """Replace by a space all that is in no language: code, formulas, URLs, units, glosses and (`quotes`) quotations.

    Newlines between lines stay. A gloss is a Latin term in brackets after a Chinese one, 机器学习（Machine Learning）,
    or a Han term in brackets after a Latin one; within a Chinese sentence that lets the Latin term pass too. A fence
    without a language that holds prose is no code and stays.
    """
    text = _CODE_LINE.sub(" ", strip_code(text.translate(_FULL_WIDTH).replace(r"\_", "_")))
    for pattern in _NOT_LANGUAGE:
        text = pattern.sub(" ", text)
    text = _GLOSS.sub(lambda gloss: f"{gloss[1]} {_without_term(gloss[2])}", text)
    text = _HAN_GLOSS.sub(" ", _GLOSSED.sub(" X", text))
    return _QUOTES.sub(" ", text) if quotes else text


def _is_code(kind: str, body: str) -> bool:
    if kind.casefold() not in _PROSE_FENCES:
        return True
    lines = [line for line in body.splitlines() if line.strip()]
    return 4 * sum(1 for line in lines if _CODE_SIGNS.search(line)) >= len(lines)


def _without_term(content: str) -> str:
    words = _WORD.findall(content)
    if len(words) > 8 or _SENTENCE_WORDS.search(content):
        return content
    return _WORD.sub(" ", content)


def evidence_by_line(text: str, license: License = License()) -> Iterator[tuple[str, Evidence]]:
    """The non-blank lines of a text that `strip_uncounted` has gone over, each with what was counted in it."""
    for line in text.split("\n"):
        if line.strip():
            yield line.strip(), _count(line, license)


def line_language(evidence: Evidence) -> Language:
    """As `Evidence.language`, but a line that holds nothing but names ("- iPhone", "| NumPy | SciPy |") is "none"."""
    language = evidence.language
    return "none" if language == "en" and evidence.english == 0 else language


def measure(text: str, license: License = License()) -> Evidence:
    """What counts in a whole text. Where nothing is left beside quotations (“你好。”), the quotations count."""
    total = Evidence()
    for quotes in (True, False):
        for _, evidence in evidence_by_line(strip_uncounted(text, quotes=quotes), license):
            total += evidence
        if total != Evidence():
            break
    return total


def language_of(text: str) -> Language:
    """Say "zh", "en", "mixed" (ordinary words of both), "other" (Japanese, French, ...) or "none" (42, 😀, code)."""
    evidence = measure(text)
    return "mixed" if evidence.mixed else evidence.language


def _count(line: str, license: License) -> Evidence:
    kept = line
    if license.han:
        kept = re.sub(rf"[{_HAN}]+", lambda run: " " if run[0] in license.han else run[0], line)
    han = len(re.findall(rf"[{_HAN}]", kept))
    words, english_function, other_function = 0, 0, 0
    runs: list[str] = []
    for match in _RUN.finditer(kept):
        run = _WORD.findall(match[0])
        if run == ["I"] or license.allows_run(run) or _PINYIN.search(match[0].casefold()):
            continue
        words += len(run) if _is_shout(run) else sum(_kind(word) != "name" for word in run)
        english_function += sum(len(word) > 1 and word.casefold() in ENGLISH_FUNCTION for word in run)
        other_function += sum(word in OTHER_FUNCTION for word in run)
        if _is_english(run, alone=han == 0):
            runs.append(" ".join(run))
    kana, other = len(re.findall(rf"[{_KANA}]", kept)), len(re.findall(rf"[{_OTHER}]", kept))
    return Evidence(han, kana, other, words, english_function, other_function, tuple(runs))


def _kind(word: str) -> Literal["name", "title", "lower"]:
    """A name has a digit, a sign, an inner capital, a hyphen or only capitals: iPhone, GPT-4, CPU, x, end-to-end."""
    if len(word) == 1 and word not in "Ia":
        return "name"
    if not word.replace("'", "").replace("’", "").isalpha() or not word.isascii():
        return "name" if not word.isalpha() else "title" if word[0].isupper() else "lower"
    if word[1:].islower() or len(word) == 1:
        return "title" if word[0].isupper() else "lower"
    return "name"


def _is_shout(run: list[str]) -> bool:
    """THIS IS A TEST: words that are all capitals, of which two or more are ordinary, are no acronyms."""
    known = sum(len(word) > 1 and _is_known(word) for word in run)
    return len(run) >= 3 and known >= 2 and all(word.isupper() for word in run)


def _is_known(word: str) -> bool:
    folded = word.casefold().replace("’", "'")
    return folded in ORDINARY or folded in OPENERS or folded in ENGLISH_FUNCTION


def _is_ordinary(word: str) -> bool:
    """A lower-case word that is English and no term or name."""
    folded = word.replace("’", "'")
    if folded in ORDINARY or "'" in folded:
        return True
    return len(word) >= 6 and word.endswith(ENDINGS) and word not in TECHNICAL


def _is_english(run: list[str], *, alone: bool) -> bool:
    """Whether words that stand together are ordinary English. `alone`: no Han character is on the line."""
    if _is_shout(run):
        return True
    lower = [word for word in run if _kind(word) == "lower"]
    titles = [word for word in run if _kind(word) == "title"]
    if all(word in CONNECTORS for word in lower):  # a name, a title, a heading: Lord of the Rings, Key Features
        known = [word for word in titles if _is_known(word)]
        if alone:
            return 2 * len(known) > len(titles) or (len(lower) >= 2 and not titles)
        return bool(titles) and len(known) == len(titles) and any(word.casefold() in OPENERS for word in titles)
    opened = any(word.casefold().replace("’", "'") in OPENERS for word in titles)
    return opened or len(lower) >= 2 or any(_is_ordinary(word) for word in lower)


# Emoji: Unicode 16 Emoji_Presentation=Yes, the pictographs of the supplementary planes, and those of the basic plane
# that are pictures whatever their default (☀ ☎ ☺ ♥ ✈ ❤). Signs that text uses (✔ ➡ ★ ‼) count only with U+FE0F;
# © ® ™, digits and keycaps never.
_PICTURE = (
    "\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2600-\u2604\u260e\u2614\u2615\u2618\u261d\u2620\u2622\u2623\u262e"
    "\u2638-\u263a\u2648-\u2653\u2665\u267f\u2693\u26a0\u26a1\u26aa\u26ab\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2"
    "\u26f3\u26f5\u26fa\u26fd\u2705\u2708-\u270d\u2728\u2744\u274c\u274e\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797\u27b0"
    "\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f201\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f23a\U0001f250\U0001f251\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7f0"
    "\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
)
_WITH_SELECTOR = (
    "\u203c\u2049\u2139\u2194-\u21aa\u2328-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f170-\U0001f251"
)
_ONE = rf"(?:[{_PICTURE}]\ufe0f?|[{_WITH_SELECTOR}]\ufe0f)[\U0001f3fb-\U0001f3ff]?"
_EMOJI = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|{_ONE}[\U000e0020-\U000e007f]*(?:\u200d(?:{_ONE}|[\u2640\u2642\u2695\u2696]))*"
)


def has_other_script(text: str) -> bool:
    """Whether a letter is of neither Chinese nor Latin script: kana, Cyrillic, Hangul, …"""
    return not text.isascii() and _NEITHER.search(text) is not None


def emoji_in(text: str) -> list[str]:
    """List the pictographs of a text; a flag or a joined family is one. Digits, keycaps, ©, ® and ™ are none."""
    return _EMOJI.findall(text)


def chinese_variant(text: str) -> Literal["Hans", "Hant"] | None:
    """Simplified or Traditional by majority of the characters that differ; None without any or at a tie (你好)."""
    balance = sum((char in SIMPLIFIED) - (char in TRADITIONAL) for char in text)
    return "Hans" if balance > 0 else "Hant" if balance < 0 else None
