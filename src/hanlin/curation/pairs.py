"""Whether two answers make a pair worth learning from."""

import re
import unicodedata

from hanlin.curation.fingerprints import plain
from hanlin.curation.rule import KEEP, Text, Verdict, objection

_LETTERS = re.compile(r"[^\w]+")
_STABLE = re.compile(r"[\x00-\x7f\u4e00-\u9fff]")
# Letters that NFKC leaves alone, the first one not joined with what follows; and signs of which it makes no letters.
_PLAIN_LETTER = re.compile(r"[0-9A-Za-z\u4e00-\u9fff]")
_PLAIN_START = re.compile(_PLAIN_LETTER.pattern + _STABLE.pattern)
_LAYOUT = " \n\t!\"#%&'()*+,-./:;<=>?[]`|~，。！？、；：“”‘’（）《》【】…—"
NEAR, GAP = 0.97, 12.0
SHORTEST = 60  # letters and digits of answers that can be nearly equal
_LOOK = 80


def bare(text: str) -> str:
    """Letters and digits alone, NFKC and lower case: what is left when layout and punctuation do not count."""
    return _LETTERS.sub("", plain(text))


def symbols(text: str) -> str:
    """Emoji and other signs that are neither letters nor punctuation: what a pair may be about."""
    return "" if text.isascii() else "".join(char for char in text if unicodedata.category(char) in ("So", "Sk"))


def check_equal(chosen: Text, rejected: Text) -> Verdict:
    """The rule `pair_equal`: answers that differ in nothing, or in next to nothing; emoji are something."""
    if _letters_apart(chosen.raw, rejected.raw) or _ends_apart(chosen.raw, rejected.raw):
        return KEEP
    one, other = bare(chosen.raw), bare(rejected.raw)
    if one == other:
        return objection("equal answers") if one and symbols(chosen.raw) == symbols(rejected.raw) else KEEP
    longer = max(len(one), len(other))
    if abs(len(one) - len(other)) > (1 - NEAR) * longer or longer < SHORTEST or longer > 20_000:
        return KEEP
    same = _common_ends(one, other)
    alike = same >= NEAR * longer and symbols(chosen.raw) == symbols(rejected.raw)
    return objection(f"{same / longer:.0%} alike") if alike else KEEP


def _letters_apart(one: str, other: str) -> bool:
    """Whether the very first and the very last letters differ, where it takes no folding to tell."""
    one, other = one.strip(_LAYOUT), other.strip(_LAYOUT)
    return (
        all(_PLAIN_START.match(text) and _PLAIN_LETTER.match(text[-1]) for text in (one, other))
        and one[0].lower() != other[0].lower()
        and one[-1].lower() != other[-1].lower()
    )


def _ends_apart(one: str, other: str) -> bool:
    """Whether the starts and the ends of two texts already say that they are neither equal nor nearly so."""
    heads = _bare_part(one, 0), _bare_part(other, 0)
    tails = _bare_part(one, -_LOOK), _bare_part(other, -_LOOK)
    start, end = _common_start(*heads), _common_start(*(tail[::-1] for tail in tails))
    if start == min(map(len, heads)) or end == min(map(len, tails)):
        return False
    return start + end < NEAR * SHORTEST


def _bare_part(text: str, start: int) -> str:
    """`bare` of a text's first or last characters, cut where NFKC joins nothing: before ASCII or a Han character."""
    cut = _STABLE.search(text, _LOOK if start == 0 else max(0, len(text) - _LOOK))
    if cut is None:
        return bare(text)
    return bare(text[: cut.start()] if start == 0 else text[cut.start() :])


def _common_start(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _common_ends(one: str, other: str) -> int:
    """Characters of the common start and the common end: all of two answers but one edit."""
    size = min(len(one), len(other))
    start = _common_start(one, other)
    end = next((i for i in range(size - start) if one[-1 - i] != other[-1 - i]), size - start)
    return start + end


def check_gap(chosen: Text, rejected: Text) -> Verdict:
    """The rule `pair_gap`: one answer more than twelve times as long as the other teaches length."""
    short, long = sorted((chosen.size, rejected.size))
    return (
        objection(f"{chosen.size} against {rejected.size} units") if long > 100 and long > GAP * max(short, 1) else KEEP
    )
