"""Personal data in Chinese and English: which characters of a text identify or reach a person.

A pattern proposes, a check digit or the words before it decide (`checksums`, `cues`). Patterns know no word
boundary: Python's does not divide Han characters from digits, so 手机13812345678请回 would be missed. They run only
where their trigger occurs, on windows of bounded size, so that no text is slow. Sources: GB 11643, GB 32100, GA 36,
ISO/IEC 7812, RFC 5321 and 5737, the numbering plans of the Chinese and the American regulator; kinds and severities
follow Google's Sensitive Data Protection.
"""

import re
from collections.abc import Callable, Iterator

from hanlin.curation import characters, checksums
from hanlin.curation.candidates import MOST, TooMany, bounded
from hanlin.curation.contacts import find_contacts
from hanlin.curation.cues import (
    FAR,
    digits_of,
    is_after_letter,
    is_arithmetic,
    is_document_after,
    is_linked,
    says,
    says_in,
    words_before,
)
from hanlin.curation.phones import find_landlines, find_mobiles, find_phones_abroad
from hanlin.curation.rule import KEEP, Around, Rule, Severity, Span, Text, Verdict, objection
from hanlin.curation.secrets import find_secrets, find_url_credentials

_START, _END = r"(?<![0-9A-Za-z_])", r"(?![0-9A-Za-z_])"
_MANY_DIGITS = re.compile(r"\d(?:[ .()\u2010-\u2015-]{0,2}\d){5}")
_DIGITS = bytes(0x30 if 0x30 <= code <= 0x39 else 0x2E for code in range(256))

_DASH = r"\u2010-\u2015-"  # hyphens and dashes, inside brackets
_RESIDENT = re.compile(
    rf"(?<!\d)(?<!\d[-.])([1-8]\d{{5}})([ .{_DASH}]?)((?:18|19|20)\d{{6}})\2(\d{{3}}[\dXx])(?!\d)(?![A-Za-z_])"
)
_PARTED_CARD = re.compile(
    rf"(?<!\d)(?<!\d[-. ])[3-6]\d{{3,7}}([ .{_DASH}])\d{{2,10}}(?:\1\d{{1,10}}){{0,4}}(?![ -]?\d)(?![A-Za-z_])"
)
_CARD_WORD = re.compile("卡|账户|账号|帐户|card|account")
_PARTED_RESIDENT = re.compile(
    rf"(?<!\d)(?<!\d[-. ])[1-8]\d{{2,5}}([ .{_DASH}])\d{{2,8}}(?:\1\d{{2,8}}){{0,4}}\1?[\dXx](?!\d)(?![A-Za-z_])"
)
_OLD_RESIDENT = re.compile(r"(?<!\d)([1-8]\d)\d{4}(\d{6})\d{3}(?!\d)(?![A-Za-z_])")
_CARD = re.compile(
    rf"(?<!\d)(?<!\d[-. ])(?:\d{{14,19}}|\d{{4}}([ .{_DASH}])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?"
    rf"|\d{{4}}([ .{_DASH}])\d{{6}}\2\d{{4,5}}|\d{{6}}[ -]\d{{10,13}})"
    r"(?![ -]?\d)(?![A-Za-z_])"
)
_SOCIAL = re.compile(r"(?<![\d-])(?!000|666|9)(\d{3})([- ])(?!00)(\d\d)\2(?!0000)(\d{4})(?![\d-])")
_TAIWAN = re.compile(_START + r"[A-Z][1289]\d{8}" + _END)
_HONG_KONG = re.compile(
    _START + rf"([A-Z]{{1,2}})[ {_DASH}]?(\d{{6}})[ {_DASH}]?([(（\[【][0-9A][)）\]】]|[0-9A]" + _END + ")"
)
_PUBLIC_HONG_KONG = ("A123456(3)", "A1234563")
_COMPANY = re.compile(_START + r"[0-9A-HJ-NPQRTUWXY]{2}\d{6}[0-9A-HJ-NPQRTUWXY]{10}" + _END)
_PLATE = re.compile(
    rf"([{characters.PROVINCES}])[A-HJ-NP-Z]([·•・ -]?)"
    r"(?:[A-HJ-NP-Z0-9]{4}[A-HJ-NP-Z0-9挂学警港澳]|[A-HJK][A-HJ-NP-Z0-9]\d{4}|\d{5}[A-HJK])" + _END
)
_PROVINCE = re.compile(rf"[{characters.PROVINCES}][A-HJ-NP-Z]")
_TRAVEL = re.compile(_START + r"(?:[A-Za-z]{1,2}\d{7,8}|[A-Z]{2,3}\d{6}|[HMhm]\d{10}|\d{8,9})" + _END)
_ADDRESS = re.compile(
    r"(?:[\u4e00-\u9fff]{2,7}(?:省|自治区))?(?:[\u4e00-\u9fff]{2,7}市)?[\u4e00-\u9fff]{1,7}[市区县旗](?:[\u4e00-\u9fff]{1,8}[镇乡街道])?"
    r"[\u4e00-\u9fff\d]{1,12}(?:路|街|大道|巷|弄|胡同)[\d一二三四五六七八九十百之-]{1,8}号(?:[\u4e00-\u9fffA-Za-z\d-]{0,16}[楼室栋单元座层])?"
)

_PUBLIC_SOCIAL = frozenset({"078051120", "219099999", "123456789"})
_DEPARTMENTS = ("91", "92", "93", "11", "12", "13", "51", "52", "53")  # the first two of a company code in digits


LIST = "list"  # the kind of a whole text with more candidates than are looked at
MANY = f"more than {MOST:,} numbers or addresses that may be personal data"


def find_personal(text: Text, *, addresses: bool = False) -> tuple[Span, ...]:
    """Every stretch of personal data, in order, none overlapping; the graver, then the longer stays.

    `addresses` looks for Chinese postal addresses too, which the pattern finds less surely. A text with more than
    `candidates.MOST` numbers of a kind to look at is one span of kind `list`.
    """
    try:
        found = _found(text, addresses=addresses)
    except TooMany:
        return (Span(0, len(text.raw), LIST),)
    return _apart(found) if len(found) > 1 else tuple(found)


def _found(text: Text, *, addresses: bool) -> list[Span]:
    found: list[Span] = []
    contacts = list(find_contacts(text))  # the quickest to see that there are too many
    packed = _packed_digits(text)
    if b"0" * 6 in packed and _MANY_DIGITS.search(text.folded):
        for fewest, finder in _BY_DIGITS:
            if b"0" * fewest in packed:
                found += finder(text)
    found += contacts
    if text.has(characters.PROVINCE) and _PROVINCE.search(text.folded):
        found += _plates(text)
    found += find_url_credentials(text.folded)
    found += find_secrets(text)
    if addresses and "号" in text.raw:
        found += (Span(*match.span(), "address", "contextual") for match in bounded(_ADDRESS.finditer(text.raw)))
    return found


def _packed_digits(text: Text) -> bytes:
    """Runs of digits as runs of zeros, without what may stand between the digits of one number."""
    between = b" .()-?" if text.has(characters.DASH) else b" .()-"
    return text.outline.translate(_DIGITS, between)


_GRAVITY: dict[Severity, int] = {"sensitive": 0, "personal": 1, "contextual": 2}


def _apart(found: list[Span]) -> tuple[Span, ...]:
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: (span.start, -span.end)):
        while kept and span.start < kept[-1].end and _weight(span) > _weight(kept[-1]):
            kept.pop()
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return tuple(kept)


def _weight(span: Span) -> tuple[int, int]:
    return -_GRAVITY[span.severity], span.end - span.start


def _residents(text: Text) -> Iterator[Span]:
    for match in bounded(_RESIDENT.finditer(text.folded)):
        number = match[1] + match[3] + match[4]
        if checksums.is_resident_id(number):
            yield Span(*match.span(), "cn_resident_id", "sensitive")
    for match in bounded(_PARTED_RESIDENT.finditer(text.folded)):
        number = "".join(filter(str.isalnum, match[0]))
        if len(number) == 18 and checksums.is_resident_id(number) and says(text.lowered, match.start(), "identity"):
            yield Span(*match.span(), "cn_resident_id", "sensitive")
    for match in bounded(_OLD_RESIDENT.finditer(text.folded)):
        born = checksums.is_birth_date(f"19{match[2]}")
        if match[1] in checksums.PROVINCES and born and says(text.lowered, match.start(), "identity"):
            yield Span(*match.span(), "cn_resident_id", "sensitive")


def _cards(text: Text) -> Iterator[Span]:
    for match in bounded(_CARD.finditer(text.folded)):
        digits = digits_of(match[0])
        if not 14 <= len(digits) <= 19 or len(set(digits)) < 3 or is_after_letter(text.folded, match.start()):
            continue
        if not checksums.is_luhn(digits) or not checksums.is_card_issuer(digits):
            continue
        if says(text.lowered, match.start(), "number") or is_arithmetic(text.folded, *match.span()):
            continue
        yield Span(*match.span(), "bank_card", "sensitive")
    for match in bounded(_PARTED_CARD.finditer(text.folded)):
        digits = digits_of(match[0])
        if 15 <= len(digits) <= 19 and checksums.is_luhn(digits) and checksums.is_card_issuer(digits):
            words = words_before(text.lowered, match.start())
            if _CARD_WORD.search(words) and not says_in(words, "number"):
                yield Span(*match.span(), "bank_card", "sensitive")


def _socials(text: Text) -> Iterator[Span]:
    for match in bounded(_SOCIAL.finditer(text.folded)):
        if match[1] + match[3] + match[4] in _PUBLIC_SOCIAL or says(text.lowered, match.start(), "number"):
            continue
        if match[2] == "-" or says(text.lowered, match.start(), "identity"):
            yield Span(*match.span(), "us_ssn", "sensitive")


def _documents(text: Text) -> Iterator[Span]:
    for match in bounded(_TAIWAN.finditer(text.folded)):
        if match[0] != "A123456789" and checksums.is_taiwan_id(match[0]):
            yield Span(*match.span(), "tw_id", "sensitive")
    for match in bounded(_HONG_KONG.finditer(text.folded)):
        if not checksums.is_hong_kong_id(match[1], match[2], match[3].strip("()（）[]【】")):
            continue
        if match[0] in _PUBLIC_HONG_KONG:
            continue
        usual = len(match[0]) == len(match[1]) + 9  # A123456(3), as on the card
        if says(text.lowered, match.start(), "identity", reach=FAR) or (
            usual and not says(text.lowered, match.start(), "number")
        ):
            yield Span(*match.span(), "hk_id", "sensitive")
    for match in bounded(_TRAVEL.finditer(text.folded)):
        if not says(text.lowered, match.start(), "passport", reach=FAR):
            if not match[0].isdigit() and is_document_after(text.lowered, match.end()):
                yield Span(*match.span(), "passport", "sensitive")
            continue
        is_date = checksums.is_birth_date(match[0][:8])
        usual = 7 <= len(digits_of(match[0])) < len(match[0])
        if usual or (is_linked(text.lowered, match.start()) and not is_date):
            yield Span(*match.span(), "passport", "sensitive")


def _companies(text: Text) -> Iterator[Span]:
    for match in bounded(_COMPANY.finditer(text.folded)):
        plain = match[0].isdigit()
        if plain and not match[0].startswith(_DEPARTMENTS):
            continue
        if plain and says(text.lowered, match.start(), "number") and not says(text.lowered, match.start(), "company"):
            continue
        if checksums.is_company_code(match[0]):
            yield Span(*match.span(), "uscc", "contextual")


def _plates(text: Text) -> Iterator[Span]:
    for match in bounded(_PLATE.finditer(text.folded)):
        tail = match[0][2:]
        if sum(map(str.isdigit, tail)) < 2 or (tail.isdigit() and tail.startswith(("19", "20")) and len(tail) == 4):
            continue
        # 新, 云, 青, 黑 … are words too: 新GDP2023. These want a dot, five digits or a word about cars.
        if (
            match[1] not in "新云青黑宁川吉贵"
            or match[2] in tuple("·•・")
            or says(text.lowered, match.start(), "plate")
            or (sum(map(str.isdigit, tail)) >= 3 and not tail[:2].isalpha())
        ):
            yield Span(*match.span(), "plate")


# Each with the fewest digits in a row that it can find anything in.
_BY_DIGITS: tuple[tuple[int, Callable[[Text], Iterator[Span]]], ...] = (
    *((15, _residents), (14, _cards), (11, find_mobiles), (7, find_landlines), (8, find_phones_abroad), (9, _socials)),
    *((6, _documents), (6, _companies)),
)


def check_personal(text: Text, around: Around) -> Verdict:
    """The rule `personal`: objects where `find_personal` finds something, and proposes masks."""
    return check_spans(text, addresses=False)


def check_spans(text: Text, *, addresses: bool) -> Verdict:
    """The rule, with postal addresses or without."""
    spans = find_personal(text, addresses=addresses)
    if spans and spans[0].kind == LIST:
        return objection(MANY, spans)
    return objection(f"{len(spans)} × {spans[0].kind}", spans, action="mask") if spans else KEEP


PERSONAL = Rule(
    name="personal",
    version=4,
    english="personal data",
    chinese="个人信息",
    source="GB 11643, GB 32100, GA 36, ISO/IEC 7812; see hanlin.curation.personal",
    check=check_personal,
    passes=(
        "拨打110或12345",
        "写信给 name@example.com",
        "ISBN 978-7-111-21382-6",
        "版本 3.14.15.92",
        "13812345678 × 2 = ?",
    ),
    fails=("手机13812345678请回", "我的邮箱是zhang.san@163.com", "身份证11010519491231002X", "ssh 到 47.93.12.200"),
)
