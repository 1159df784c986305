"""Whether two answers make a pair worth learning from."""

import re
import unicodedata

from hanlin.curation.rule import KEEP, Text, Verdict, objection

_LETTERS = re.compile(r"[^\w]+")
NEAR, GAP = 0.97, 12.0


def bare(text: str) -> str:
    """Letters and digits alone, NFKC and lower case: what is left when layout and punctuation do not count."""
    return _LETTERS.sub("", unicodedata.normalize("NFKC", text).lower())


def symbols(text: str) -> str:
    """Emoji and other signs that are neither letters nor punctuation: what a pair may be about."""
    return "" if text.isascii() else "".join(char for char in text if unicodedata.category(char) in ("So", "Sk"))


def check_equal(chosen: Text, rejected: Text) -> Verdict:
    """The rule `pair_equal`: answers that differ in nothing, or in next to nothing; emoji are something."""
    one, other = bare(chosen.raw), bare(rejected.raw)
    if one == other:
        return objection("equal answers") if one and symbols(chosen.raw) == symbols(rejected.raw) else KEEP
    longer = max(len(one), len(other))
    if abs(len(one) - len(other)) > (1 - NEAR) * longer or longer < 60 or longer > 20_000:
        return KEEP
    same = _common_ends(one, other)
    alike = same >= NEAR * longer and symbols(chosen.raw) == symbols(rejected.raw)
    return objection(f"{same / longer:.0%} alike") if alike else KEEP


def _common_ends(one: str, other: str) -> int:
    """Characters of the common start and the common end: all of two answers but one edit."""
    size = min(len(one), len(other))
    start = next((i for i in range(size) if one[i] != other[i]), size)
    end = next((i for i in range(size - start) if one[-1 - i] != other[-1 - i]), size - start)
    return start + end


def check_gap(chosen: Text, rejected: Text) -> Verdict:
    """The rule `pair_gap`: one answer more than twelve times as long as the other teaches length."""
    short, long = sorted((chosen.size, rejected.size))
    return (
        objection(f"{chosen.size} against {rejected.size} units") if long > 100 and long > GAP * max(short, 1) else KEEP
    )
