"""Telephone numbers: Chinese mobiles and landlines, other countries' in their international and home forms.

What is written as only one thing is written (+86 138 1234 5678, (010) 8888 1234) is trusted; a plain run of digits, or
one grouped in an unusual way, wants a word before it that says so. Sources: the Chinese numbering plan, ITU-T E.164 and
its list of country codes, the North American plan.
"""

import re
from collections.abc import Iterator

from hanlin.curation.candidates import bounded
from hanlin.curation.checksums import is_birth_date, is_phone_abroad
from hanlin.curation.cues import (
    digits_of,
    is_after_letter,
    is_arithmetic,
    is_numbered_after,
    is_quantity,
    says,
    says_in,
    words_before,
)
from hanlin.curation.rule import Span, Text

_DASH = r"\u2010-\u2015-"  # hyphens and dashes, inside brackets
_MOBILE = re.compile(
    rf"(?<!\d)(?<!\d[-.])(?:[(（[]?(?:(?:\+|00)?86|011[ -]?86)[)）\]]?[ .{_DASH}]?[(（]?)?"
    rf"(1[3-9]\d(?:\d{{8}}|([ .{_DASH}])\d{{4}}\2\d{{4}}|[ -]\d{{8}}|\d ?\d{{3}} ?\d{{4}}))"
    r"(?![\d_]|-\d|\.(?!0(?!\d))\d)(?![A-Za-z]{3})"
)
# 1381 234 5678, 138/1234/5678, 138 123 45678: only after a word for phones or +86. The literal comes first: quicker.
_PARTED_MOBILE = re.compile(
    rf"1(?<!\d1)(?<!\d[-.]1)[3-9]\d{{1,5}}(?P<gap>[ ./{_DASH}])\d{{2,6}}(?:(?P=gap)\d{{2,6}}){{0,3}}(?![\d_]|-\d|\.\d)"
)
_COUNTRY_BEFORE = re.compile(r"(?:\+|00)86[)）\]]?[ -]?$")
_LANDLINE = re.compile(
    rf"(?<!\d)(?<!\d[-.])(?:[(（[]?(?:(?:\+|00)86|86(?=-|\d{{2,3}}-))[)）\]]?[ {_DASH}]?(?:\(0\)|[(（])?"
    rf"(?:0?10|0?2[0-57-9]|0?[3-9]\d\d)[)）]?[ {_DASH}]?"
    rf"|[(（[]0(?:10|2[0-57-9]|[3-9]\d\d)[)）\]][ {_DASH}]?|0(?:10|2[0-57-9]|[3-9]\d\d)([ .{_DASH}]|))"
    rf"[2-9]\d{{2,3}}[ {_DASH}]?\d{{4}}(?:(?:-|转|ext\.? ?)\d{{1,5}})?(?![\d_])(?!-\d)(?![A-Za-z])"
)
_CODE = (
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[124]|9[0-58]"
    r"|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[05789]|9[679])\d)"
)
_NATIONAL = (
    rf"({_CODE})[)）]?(?:[ -]?\(\d{{1,4}}\))?((?:[ .{_DASH}]?\d(?=[ .{_DASH}]\d))?(?:[ .{_DASH}]?\d{{2,5}}){{2,5}})"
    r"(?![\d_]|\.\d)"
)
_ABROAD = re.compile(rf"\+(?<![\dA-Za-z_)]\+){_NATIONAL}")
_ABROAD_ZEROS = re.compile(rf"00(?<![\dA-Za-z_.)-]00){_NATIONAL}")
_TRUNK = re.compile(r"\(0\)")
_AMERICAN = re.compile(
    r"(?<![\dA-Za-z_+])(?<!\d[-. ])(?:1[-. ])?(?:\([2-9]\d\d\) ?|([2-9]\d\d)([-. ]|))[2-9]\d\d[-. ]?\d{4}"
    r"(?![\d_])(?![-.]\d)"
)
_LOCAL_PHONE = re.compile(
    r"(?<![\dA-Za-z_+])(?<!\d[-. ])(?:(?:[(（]\d{2,5}[)）] ?|0\d{1,4}[ -]?)\d{3,4}[ -]?\d{3,4}|[2-9]\d{3}[ -]\d{4})"
    r"(?![\d_])(?!-\d)"
)
_VARIABLE = re.compile(r"(?<![a-z_])[a-z] ?=$")
_PUBLIC_PHONES = frozenset({"13800138000", "18888888888"})
_TOLL_FREE = ("400", "800", "833", "844", "855", "866", "877", "888", "900")


def find_mobiles(text: Text) -> Iterator[Span]:
    """Chinese mobile numbers."""
    for match in bounded(_MOBILE.finditer(text.folded)):
        start, end = match.span()
        if _is_no_phone(digits_of(match[1])):
            continue
        before = text.folded[start - 1] if start else " "
        if before in "(（" and match[0].count(")") and not match[0].count("("):
            start -= 1
        end += match[0].count("(") > match[0].count(")") and text.folded[end : end + 1] == ")"
        words = words_before(text.lowered, start)
        if (
            (words and says_in(words, "phone"))
            or (
                not is_after_letter(text.folded, start)
                and not text.folded.startswith(".0", end)  # 13812345678.0: a table's column, or a sum
                and before not in "#.$¥￥€_/第"
                and not (before == "=" and _VARIABLE.search(text.lowered, max(0, start - 4), start))
                and not _is_joined(text.folded[end : end + 1])
                and not (words and says_in(words, "number"))
                and not is_arithmetic(text.folded, start, end)
                and not is_quantity(text.lowered, end)
                and not is_numbered_after(text.lowered, end)
            )
        ):
            yield Span(start, end, "cn_mobile")
    for match in bounded(_PARTED_MOBILE.finditer(text.folded)):
        digits = digits_of(match[0])
        if len(digits) != 11 or _is_no_phone(digits):
            continue
        country = _COUNTRY_BEFORE.search(text.folded, max(0, match.start() - 7), match.start())
        if country or says(text.lowered, match.start(), "phone"):
            yield Span(country.start() if country else match.start(), match.end(), "cn_mobile")


def _is_no_phone(digits: str) -> bool:
    """Numbers that everybody knows, and made-up ones: 13800000000, 13131313131."""
    return digits in _PUBLIC_PHONES or len(set(digits[3:])) == 1 or len(set(digits)) <= 2


def _is_joined(after: str) -> bool:
    return after.isascii() and (after.isalpha() or after in ("%", "/"))


def find_landlines(text: Text) -> Iterator[Span]:
    """Chinese landlines with their area code."""
    for match in bounded(_LANDLINE.finditer(text.folded)):
        unsure = match[1] in ("", ".") or (match[0].startswith("86") and match[0][2] != "-")
        if unsure and not says(text.lowered, match.start(), "phone"):
            continue
        if says(text.lowered, match.start(), "number") or is_after_letter(text.folded, match.start()):
            continue
        yield Span(*match.span(), "cn_landline")


def find_phones_abroad(text: Text) -> Iterator[Span]:
    """Numbers of other countries."""
    yield from _international(text)
    for match in bounded(_AMERICAN.finditer(text.folded)):
        digits = digits_of(match[0])[-10:]
        plain = match[2] == ""
        cued = says(text.lowered, match.start(), "phone")
        if _is_public_american(digits) or (not cued and (plain or match[2] == " ")):
            continue
        if cued or not (says(text.lowered, match.start(), "number") or is_arithmetic(text.folded, *match.span())):
            yield Span(*match.span(), "phone")
    for match in bounded(_LOCAL_PHONE.finditer(text.folded)):
        digits = digits_of(match[0])
        if 8 <= len(digits) <= 12 and not is_birth_date(digits) and says(text.lowered, match.start(), "phone"):
            yield Span(*match.span(), "phone")


def _international(text: Text) -> Iterator[Span]:
    """+33 6 47 81 25 39; with 00 for the + where a word says that it is a phone, or where it is grouped like one."""
    folded = text.folded
    for match in bounded(_ABROAD.finditer(folded)) if "+" in folded else ():
        start, end = match.span()
        in_bracket = folded[max(0, start - 1) : start] in ("(", "（") and match[0].count(")") > match[0].count("(")
        signed = start + (folded[max(0, start - 1) : start] not in ("(", "（"))  # with its sign in a bracket
        if _is_somebodys(match) and not is_arithmetic(folded, signed, end):
            yield Span(start - in_bracket, end, "phone")
    for match in bounded(_ABROAD_ZEROS.finditer(folded)) if "00" in folded else ():
        if _is_somebodys(match):
            grouped = len(re.findall(r"[ -]", match[0])) >= 3
            cued = says(text.lowered, match.start(), "phone")
            if cued or (grouped and not says(text.lowered, match.start(), "number")):
                yield Span(*match.span(), "phone")


def _is_somebodys(match: re.Match[str]) -> bool:
    code, digits = match[1], digits_of(_TRUNK.sub("", match[0])).removeprefix("00")
    if code == "1" and _is_public_american(digits[1:]):
        return False
    return is_phone_abroad(code, digits.removeprefix(code))


def _is_public_american(digits: str) -> bool:
    """Toll-free numbers, and 555-0100 to 555-0199, which the numbering plan reserves for fiction."""
    return digits[:3] in _TOLL_FREE or digits[3:8] == "55501"
