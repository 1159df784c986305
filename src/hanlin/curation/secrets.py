"""Keys, tokens and passwords in addresses: strings that open something.

Issuers' prefixes (as in their own secret-scanning pages) are trusted when the rest looks random; a key of unknown make
needs a name beside it (api_key = ...). Placeholders (your-key, xxxx, <token>, AWS's ...EXAMPLE) pass.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from hanlin.curation.candidates import bounded
from hanlin.curation.rule import Span, Text

_B, _E = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9])"
_KNOWN = tuple(
    (start.lower().encode(), re.compile(_B + pattern + _E))
    for start, pattern in (
        ("sk-", r"sk-[A-Za-z0-9_-]{20,200}"),
        *((f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9]{{30,255}}") for kind in "pousr"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
        ("glpat-", r"glpat-[A-Za-z0-9_-]{20,64}"),
        ("AKIA", r"AKIA[0-9A-Z]{16}"),
        ("ASIA", r"ASIA[0-9A-Z]{16}"),
        ("AIza", r"AIza[0-9A-Za-z_-]{35}"),
        ("xox", r"xox[abeoprs]-[0-9A-Za-z-]{10,250}"),
        ("hf_", r"hf_[A-Za-z0-9]{30,64}"),
        ("LTAI", r"LTAI[A-Za-z0-9]{12,26}"),
        ("AKID", r"AKID[A-Za-z0-9]{28,40}"),
        ("_live_", r"[srp]k_live_[A-Za-z0-9]{16,250}"),
        ("_test_", r"[sr]k_test_[A-Za-z0-9]{16,250}"),
        ("npm_", r"npm_[A-Za-z0-9]{36}"),
        ("pypi-", r"pypi-[A-Za-z0-9_-]{32,250}"),
        ("SG.", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
        ("eyJ", r"eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]{10,1000}"),
        (":AA", r"\d{8,10}:AA[A-Za-z0-9_-]{32,35}"),
        ("hooks.slack.com", r"https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,80}"),
    )
)
_KEY_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/+-")
_LATIN_NAMES = (b"api_key", b"api-key", b"apikey", b"api key", b"secret", b"token", b"access_key", b"accesskey")
_HAN_NAMES = ("密钥", "秘钥", "令牌")
_NAMED = re.compile(
    r"(?:api[ _-]?key|api密钥|secret(?:[ _-]?(?:key|id))?|access[ _-]?(?:key|token)(?:[ _-]?(?:id|secret))?|auth[ "
    r"_-]?token|(?<![a-z])token"
    r"|密钥|秘钥|令牌)[\"'`]?[ ]{0,2}(?:is|是|为|[:：=]|=>)[ ]{0,2}[\"'`]?(?:bearer )?([A-Za-z0-9_+/.-]{16,200})"
    r"(?![A-Za-z0-9])",
    re.I,
)
_PEM = re.compile(r"-----BEGIN (?:[A-Z]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
# Every key is a run of these, and prose has hardly any as long.
_RUN, _IN_RUN = b"a" * 14, bytes(0x61 if chr(code) in _KEY_CHARACTERS else 0x20 for code in range(256))
_DIGIT = re.compile(rb"[0-9]")
_PASSWORD = re.compile(r"://([^\s/@:\"'<>]{1,80}):([^\s/@\"'<>]{1,120})@[A-Za-z0-9\[]")
_IN_QUERY = re.compile(r"[?&;](?:password|passwd|pwd)=([^\s&;\"'<>#]{4,80})", re.I)
_BLANK = re.compile(
    r"x{4,}|\*{3}|\.{3}|your|example|placeholder|change_?me|<|\$|\{|abcdef|123456789|sample|dummy|fake|insert|redacted",
    re.I,
)
_BLANK_PASSWORD = re.compile(r"(?:pass(?:word|wd|wort)?|pwd|secret|token|\[?密码\]?|x+|\*+|\.+)\d{0,3}$", re.I)


def find_secrets(looked_at: Text) -> Iterator[Span]:
    """Keys and tokens of a text."""
    text = looked_at.folded
    runs = _long_runs(looked_at.outline)
    for start, pattern in _KNOWN if runs else ():
        if start in runs:
            for match in bounded(pattern.finditer(text)):
                if is_random(match[0]):
                    yield Span(*match.span(), "secret", "sensitive")
    if b"private key" in looked_at.outline:
        for match in bounded(_PEM.finditer(text)):
            if len(text[match.end() : match.end() + 200].split("-----")[0].strip()) >= 16:
                end = _PEM_END.search(text, match.end(), match.end() + 20_000)
                yield Span(match.start(), end.end() if end else len(text), "secret", "sensitive")
    if _DIGIT.search(runs) and (
        any(name in looked_at.outline for name in _LATIN_NAMES)
        or (looked_at.num_han and any(name in looked_at.lowered for name in _HAN_NAMES))
    ):
        for match in bounded(_NAMED.finditer(text)):
            key = match[1]
            if is_random(key) and any(map(str.isdigit, key)) and any(map(str.isalpha, key)) and "/" not in key[:2]:
                yield Span(*match.span(1), "secret", "sensitive")


def _long_runs(outline: bytes) -> bytes:
    """The runs of characters that can be keys, one behind the other."""
    marked, runs = outline.translate(_IN_RUN), []
    start = marked.find(_RUN)
    while start >= 0:
        end = marked.find(b" ", start)
        end = len(marked) if end < 0 else end
        runs.append(outline[start:end])
        start = marked.find(_RUN, end)
    return b" ".join(runs)


def find_url_credentials(text: str) -> Iterator[Span]:
    """The `user:password` of addresses such as ftp://user:password@host."""
    if "://" in text and "@" in text:
        for match in bounded(_PASSWORD.finditer(text)):
            if not _BLANK_PASSWORD.match(match[2]) and not _BLANK.search(match[2]):
                yield Span(match.start(1), match.end(2), "url_credentials", "sensitive")
    if "://" in text and "=" in text:
        for match in bounded(_IN_QUERY.finditer(text)):
            address = text[max(0, match.start() - 200) : match.start()].rsplit(maxsplit=1)
            if address and "://" in address[-1] and not (_BLANK_PASSWORD.match(match[1]) or _BLANK.search(match[1])):
                yield Span(*match.span(1), "url_credentials", "sensitive")


def is_random(key: str) -> bool:
    """At least 2.9 bits a character (Shannon), and no placeholder's words in it."""
    if _BLANK.search(key):
        return False
    counts = Counter(key)
    return -sum(n / len(key) * math.log2(n / len(key)) for n in counts.values()) >= 2.9
