"""Where a person can be reached on the network: mail addresses, public IP addresses, messenger handles."""

import ipaddress
import re
from collections.abc import Iterator
from typing import AnyStr

from hanlin.curation.candidates import MOST, TooMany, bounded
from hanlin.curation.cues import says_in, words_before
from hanlin.curation.rule import Span, Text

_MAIL = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,6}([A-Za-z]{2,18})(?![A-Za-z0-9@])"
)

_BEFORE_HOST = re.compile(r"@(?=[A-Za-z0-9-]{1,63}\.[A-Za-z0-9])")
_DIGIT_DOT = re.compile(r"\d\.\d{1,3}\.\d")
_DIGITS_AND_DOTS = bytes(0x30 if 0x30 <= code <= 0x39 else code if code == 0x2E else 0x20 for code in range(256))
_HEXADECIMAL = bytes(0x68 if chr(code) in "0123456789abcdef" else code if code == 0x3A else 0x20 for code in range(256))
_IPV4 = re.compile(r"(?<![\d.A-Za-z_-])(?:\d{1,3}\.){3}\d{1,3}(?![\dA-Za-z_]|\.\d|-\d|/\d)")

_IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}(?![0-9A-Za-z_:])")

_HANDLE = re.compile(
    r"(?P<app>QQ|Q Q|扣扣|加群|加微|\+V"
    r"|微信|WeChat|Weixin|WX|VX|V信|薇信|威信|企鹅号|Telegram|WhatsApp|Skype|Line|Discord|Signal"
    r"|电报|钉钉|飞机|TG|Instagram)(?P<mark>(?:公众)?[ ]?(?:帐号|账号|帳號|號碼|號|号码|群号|群|号|搜"
    r"|[ ]?id(?![a-z0-9_])|[ ](?:account|handle|number|username|name))?[ ]?(?:is|是|为|[:：=]|加|@)?[ ]?)"
    r"(?P<handle>@?(?:live:)?(?:[A-Za-z][A-Za-z0-9_.-]{1,29}#\d{4}|[A-Za-z][A-Za-z0-9_.-]{3,29}[A-Za-z0-9_]|[1-9]\d{4,11}))(?![A-Za-z0-9_@])",
    re.I,
)

_PUBLIC_ADDRESSES = frozenset(
    {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "114.114.115.115", "223.5.5.5"}
    | {"223.6.6.6", "119.29.29.29", "180.76.76.76", "208.67.222.222", "208.67.220.220", "1.2.4.8", "4.2.2.2"}
)

_EXAMPLE_HOSTS = re.compile(
    r"[.@](?:example|yourdomain|your-domain|domain|localhost)(?:[.-]|$)|\.(?:test|example|invalid|localhost|local)$",
    re.I,
)

_NOBODY = ("noreply", "no-reply", "donotreply", "do-not-reply", "git@", "postmaster@", "mailer-daemon@")

_PLACEHOLDER = re.compile(r"(?:x{2,}|test|foo|username|your[._-]?(?:name|email|mail))@", re.I)
_FILE_ENDINGS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "js",
        "ts",
        "css",
        "py",
        "html",
        "htm",
        "md",
        "json",
        "tar",
        "gz",
        "zip",
        "mp4",
        "mp3",
        "pdf",
        "scss",
        "vue",
    ]
)

_HANDLE_WORDS = frozenset(
    [
        "account",
        "number",
        "handle",
        "username",
        "official",
        "support",
        "wechat",
        "weixin",
        "pay",
        "payment",
        "yourname",
        "your_name",
        "example",
        "music",
        "message",
        "messenger",
        "group",
        "groups",
        "channel",
        "video",
        "mail",
        "email",
        "client",
        "server",
        "android",
        "windows",
        "desktop",
        "mobile",
        "request",
        "business",
        "minute",
        "minutes",
        "number_of",
        "about",
        "items",
        "break",
        "breaks",
        "between",
        "chart",
        "charts",
        "segment",
        "graph",
    ]
)


def _mails(text: Text) -> Iterator[Span]:
    folded, last = text.folded, 0
    for sign in bounded(_BEFORE_HOST.finditer(folded)):
        at = sign.start()
        if at < last:
            continue
        left = at
        while (
            left > max(last, at - 64)
            and folded[left - 1].isascii()
            and (folded[left - 1].isalnum() or folded[left - 1] in "._%+'-")
        ):
            left -= 1
        while left < at and not folded[left].isalnum():
            left += 1
        match = _MAIL.match(folded, left, at + 260) if left < at else None
        if match is None:
            continue
        last = match.end()
        after = folded[last : last + 1]
        if match[1].lower() not in _FILE_ENDINGS and not _is_nobody(match[0], after):
            yield Span(*match.span(), "email")


def _is_nobody(mail: str, after: str) -> bool:
    return (
        bool(_EXAMPLE_HOSTS.search(mail))
        or mail.lower().startswith(_NOBODY)
        or bool(_PLACEHOLDER.match(mail))
        or (after == ":" and mail.startswith("git"))
    )


def _ipv4(text: Text) -> Iterator[Span]:
    for match in bounded(_IPV4.finditer(text.folded)):
        parts = match[0].split(".")
        numbers = tuple(map(int, parts))
        if max(numbers) > 255 or not numbers[3] or not _is_public_ipv4(*numbers[:3]):
            continue
        if match[0] in _PUBLIC_ADDRESSES or any(part[0] == "0" and len(part) > 1 for part in parts):
            continue
        words = words_before(text.lowered, match.start())
        cued = bool(words) and says_in(words, "host")
        # 1.2.3.4 and 2.0.14.1 are sections and versions unless a word says otherwise.
        if cued or not (max(numbers) <= 60 or (words and says_in(words, "version"))):
            yield Span(match.start(), match.end(), "ip", "contextual")


def _is_public_ipv4(first: int, second: int, third: int) -> bool:
    """By IANA's registry of special addresses (RFC 6890): neither private, shared, local, documentation nor multicast.

    `ipaddress` says the same, 5 µs an address.
    """
    if first in (0, 10, 127) or first >= 224:
        return False
    if first in (100, 169, 172, 192, 198, 203):
        return not (
            (first == 100 and 64 <= second < 128)
            or (first, second) in ((169, 254), (192, 168), (198, 18), (198, 19))
            or (first == 172 and 16 <= second < 32)
            or (first, second, third) in ((192, 0, 0), (192, 0, 2), (192, 88, 99), (198, 51, 100), (203, 0, 113))
        )
    return True


def _ipv6(text: Text) -> Iterator[Span]:
    for match in bounded(_IPV6.finditer(text.folded)):
        try:
            address = ipaddress.IPv6Address(match[0].rstrip(":") if not match[0].endswith("::") else match[0])
        except ValueError:
            continue
        if address.is_global:
            yield Span(match.start(), match.start() + len(match[0].rstrip(":")), "ip", "contextual")


_APPS = (
    *(
        "qq",
        "q q",
        "扣扣",
        "加群",
        "加微",
        "+v",
        "微信",
        "wechat",
        "weixin",
        "wx",
        "vx",
        "v信",
        "薇信",
        "威信",
        "企鹅",
        "telegram",
        "whatsapp",
        "skype",
    ),
    "line",
    "discord",
    "signal",
    "电报",
    *("钉钉", "飞机", "tg", "instagram"),
)
_RARE = ("+", "q", "x")  # a letter that prose may lack is looked for before the names that hold it
_LATIN_APPS = {
    rare.encode(): tuple(
        app.encode() for app in _APPS if app.isascii() and next((sign for sign in _RARE if sign in app), "") == rare
    )
    for rare in (*_RARE, "")
}
_OTHER_APPS = tuple(app for app in _APPS if not app.isascii())


_NICKNAMES = (
    "vx",
    "+v",
    "v信",
    "薇信",
    "威信",
    "扣扣",
    "企鹅号",
    "加微",
    "加群",
)  # nobody talks about these, they give an address
_NUMBERED_APPS = ("qq", "q q", "微信", *_NICKNAMES)


_MOST_NAMES = 4 * MOST  # app names in a text: most are words, and quickly seen to be


def _places(text: AnyStr, piece: AnyStr) -> Iterator[int]:
    at = text.find(piece)
    while at >= 0:
        yield at
        at = text.find(piece, at + 1)


def _named_handles(text: Text) -> Iterator[re.Match[str]]:
    """The pattern, tried only where an app's name stands: everywhere it would take longer than all other kinds."""
    outline, lowered = text.outline, text.lowered
    apps = [app for rare, apps in _LATIN_APPS.items() if rare in outline for app in apps if app in outline]
    places = {place for app in apps for place in _places(outline, app)}
    if text.num_han:
        places |= {place for app in _OTHER_APPS if app in lowered for place in _places(lowered, app)}
    if not places:
        return
    end = 0
    if len(places) > _MOST_NAMES:
        raise TooMany
    for place in sorted(places):
        if place >= end and (match := _HANDLE.match(text.folded, place)):
            end = match.end()
            yield match


def _handles(text: Text) -> Iterator[Span]:
    for match in bounded(_named_handles(text)):
        app, mark, handle = match["app"].lower(), match["mark"], match["handle"]
        if _after_letter(text.folded, match.start()) or handle.lower().strip("@") in _HANDLE_WORDS | {"10000"}:
            continue
        named = bool(mark.strip()) and mark.strip() not in ("群", "公众")
        if handle.isdigit():
            sure = named or app in _NUMBERED_APPS
            sure = sure and (app not in ("line", "signal", "discord", "skype", "telegram") or len(handle) >= 7)
            sure = sure and not (app == "qq" and handle.startswith(("2009", "2010")) and len(handle) == 4)
        elif app in ("tg", "飞机", "instagram"):
            sure = handle.startswith("@") and bool(mark.strip())
        elif app in ("line", "signal"):
            sure = "id" in mark.lower() or (
                any(map(str.isdigit, handle))
                and mark.strip() in (":", "：")
                and ("_" in handle or not text.folded[max(0, match.start() - 4) : match.start()].strip().isascii())
            )
        else:
            sure = _looks_like_handle(handle, named or app in _NICKNAMES)
        if sure:
            yield Span(*match.span("handle"), "im_handle")


def _looks_like_handle(handle: str, named: bool) -> bool:
    """Digits or underscores in it; after 微信号： a plain word will do, unless it is an English phrase's first."""
    coded = any(char.isdigit() or char in "_#" for char in handle) or handle.startswith("@")
    coded = coded or (named and "-" in handle)
    return coded or (named and handle.lower() not in _HANDLE_WORDS and handle.islower() and len(handle) >= 6)


def _after_letter(text: str, start: int) -> bool:
    return start > 0 and text[start - 1].isascii() and (text[start - 1].isalpha() or text[start - 1] == "_")


def find_contacts(text: Text) -> Iterator[Span]:
    """Mail and IP addresses and handles; each pattern runs only where its sign occurs."""
    outline = text.outline
    if b"@" in outline:
        yield from _mails(text)
    if (b"::" in outline or outline.count(b":") > 6) and b"hhhh:" in outline.translate(_HEXADECIMAL):
        yield from _ipv6(text)
    if b"0.0" in outline.translate(_DIGITS_AND_DOTS) and _DIGIT_DOT.search(text.folded):
        yield from _ipv4(text)
    yield from _handles(text)
