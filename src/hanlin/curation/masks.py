"""What stands in the place of personal data: a typed mask ([手机号], [phone]), or a made-up value of the same shape.

The same value has the same mask everywhere in a row; a second value of the same kind is numbered ([手机号2]). A made-up
value fails its check digit or lies in a range that nobody is given, so that curating again finds nothing.
"""

import hashlib
import json
from collections import Counter

from hanlin.curation.personal import find_personal
from hanlin.curation.rule import Span, Text

LABELS: dict[str, tuple[str, str]] = {
    "cn_resident_id": ("身份证号", "ID number"),
    "bank_card": ("银行卡号", "card number"),
    "cn_mobile": ("手机号", "phone"),
    "cn_landline": ("电话号码", "landline"),
    "phone": ("电话", "telephone"),
    "us_ssn": ("社会安全号", "SSN"),
    "tw_id": ("台湾身份证号", "Taiwan ID"),
    "hk_id": ("香港身份证号", "Hong Kong ID"),
    "passport": ("证件号", "passport"),
    "uscc": ("统一社会信用代码", "company code"),
    "plate": ("车牌号", "license plate"),
    "email": ("邮箱", "email"),
    "ip": ("IP地址", "IP address"),
    "im_handle": ("账号", "handle"),
    "secret": ("密钥", "secret"),
    "url_credentials": ("账号密码", "credentials"),
    "address": ("地址", "address"),
    "list": ("名单", "list"),
}


class Masks:
    """The masks of one row: remembers which value got which."""

    def __init__(self, *, chinese: bool, replace: bool = False) -> None:
        self._chinese, self._replace = chinese, replace
        self._of: dict[tuple[str, str], str] = {}
        self._numbers = Counter[str]()

    def apply(self, text: str, spans: tuple[Span, ...], *, is_data: bool = False) -> tuple[str, list[str]]:
        """The text with each span masked (or replaced), and what was put there. Data that is JSON stays JSON."""
        put = [self.of(text[span.start : span.end], span.kind) for span in spans]
        made = _join(text, spans, put)
        if self._replace and find_personal(Text(made)):
            put = [self._mask(text[span.start : span.end], span.kind) for span in spans]
            made = _join(text, spans, put)
        if is_data and _is_json(text) and not _is_json(made):
            put = [_quoted(text, span, mask) for span, mask in zip(spans, put, strict=True)]
            made = _join(text, spans, put)
        return made, put

    def of(self, value: str, kind: str) -> str:
        """What stands for a value."""
        return synthetic(value, kind) if self._replace else self._mask(value, kind)

    def _mask(self, value: str, kind: str) -> str:
        key = (kind, Text(value).lowered.replace(" ", "").replace("-", "").removeprefix("+86"))
        if key not in self._of:
            self._numbers[kind] += 1
            number = self._numbers[kind]
            label = LABELS[kind][0 if self._chinese else 1]
            self._of[key] = f"[{label}{number if number > 1 else ''}]"
        return self._of[key]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(text: str, span: Span, mask: str) -> str:
    """The mask as a JSON string where a number stood: {"phone": 13812345678}."""
    return f'"{mask}"' if text[max(0, span.start - 80) : span.start].rstrip()[-1:] in tuple(":[,") else mask


def _join(text: str, spans: tuple[Span, ...], put: list[str]) -> str:
    pieces, last = [], 0
    for span, mask in zip(spans, put, strict=True):
        pieces += (text[last : span.start], mask)
        last = span.end
    return "".join((*pieces, text[last:]))


def synthetic(value: str, kind: str) -> str:
    """A value of the same shape that belongs to nobody; the same for the same value.

    Mail goes to example.com, addresses to RFC 5737's and RFC 3849's ranges, numbers get zeros where no real one has
    them.
    """
    seed = hashlib.blake2b(f"{kind}:{value}".encode()).digest()
    drawn = "".join(str(byte % 10) for byte in seed)
    if kind == "email":
        return f"user{drawn[:6]}@example.com"
    if kind == "ip":
        return f"2001:db8::{drawn[:4]}" if ":" in value else f"192.0.2.{seed[0]}"
    if kind in ("secret", "url_credentials", "im_handle", "address", "list"):
        return {"url_credentials": "user:password"}.get(kind, f"EXAMPLE-{drawn[:8]}")
    kept = 2 if kind in ("plate", "uscc") else 0
    body = []
    for index, char in enumerate(value):
        if char.isdigit() and index >= kept:
            body.append("0" if index < kept + 4 else drawn[index % len(drawn)])
        else:
            body.append("0" if char in "Xx" else char)
    return "".join(body)
