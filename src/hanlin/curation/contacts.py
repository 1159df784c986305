"""Where a person can be reached on the network: mail addresses, public IP addresses, messenger handles."""

import ipaddress
import re
from collections.abc import Iterator
from typing import AnyStr

from hanlin.curation.cues import says
from hanlin.curation.rule import Span, Text

_MAIL = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,6}([A-Za-z]{2,18})(?![A-Za-z0-9@])"
)

_DIGIT_DOT = re.compile(r"\d\.\d{1,3}\.\d")
_DIGITS_AND_DOTS = bytes(0x30 if 0x30 <= code <= 0x39 else code if code == 0x2E else 0x20 for code in range(256))
_HEXADECIMAL = bytes(0x68 if chr(code) in "0123456789abcdef" else code if code == 0x3A else 0x20 for code in range(256))
_IPV4 = re.compile(r"(?<![\d.A-Za-z_-])(?:\d{1,3}\.){3}\d{1,3}(?![\dA-Za-z_]|\.\d|-\d|/\d)")

_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}(?![\w:]|/\d)")

_HANDLE = re.compile(
    r"(?P<app>QQ|微信|WeChat|Weixin|WX|VX|V信|薇信|威信|企鹅号|Telegram|WhatsApp|Skype|Line|Discord|Signal|电报"
    r"|钉钉)(?P<mark>(?:公众)?[ ]?(?:帐号|账号|号码|群号|群|号"
    r"|[ ]?id(?![a-z0-9_])|[ ](?:account|handle|number|username|name))?[ ]?(?:is|是|为|[:：=]|加|@)?[ ]?)"
    r"(?P<handle>@?(?:[A-Za-z][A-Za-z0-9_.-]{3,29}[A-Za-z0-9_]|[1-9]\d{4,11}))(?![A-Za-z0-9_@])",
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
    folded, at, last = text.folded, text.folded.find("@"), 0
    while at >= 0:
        left = at
        while (
            left > max(last, at - 64)
            and folded[left - 1].isascii()
            and (folded[left - 1].isalnum() or folded[left - 1] in "._%+'-")
        ):
            left -= 1
        match = None
        for start in range(left, at):
            if folded[start].isalnum():
                match = _MAIL.match(folded, start, at + 260)
                break
        if (
            match
            and match[1].lower() not in _FILE_ENDINGS
            and not _is_nobody(match[0], folded[match.end() : match.end() + 1])
        ):
            yield Span(*match.span(), "email")
        last = match.end() if match else at + 1
        at = folded.find("@", last)


def _is_nobody(mail: str, after: str) -> bool:
    return (
        bool(_EXAMPLE_HOSTS.search(mail))
        or mail.lower().startswith(_NOBODY)
        or (after == ":" and mail.startswith("git"))
    )


def _ipv4(text: Text) -> Iterator[Span]:
    for match in _IPV4.finditer(text.folded):
        parts = match[0].split(".")
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts) or parts[3] == "0":
            continue
        if match[0] in _PUBLIC_ADDRESSES or not ipaddress.IPv4Address(match[0]).is_global:
            continue
        cued = says(text.lowered, match.start(), "host")
        # 1.2.3.4 and 2.0.14.1 are sections and versions unless a word says otherwise.
        if cued or not (says(text.lowered, match.start(), "version") or all(int(part) <= 20 for part in parts)):
            yield Span(*match.span(), "ip", "contextual")


def _ipv6(text: Text) -> Iterator[Span]:
    for match in _IPV6.finditer(text.folded):
        try:
            address = ipaddress.IPv6Address(match[0].rstrip(":") if not match[0].endswith("::") else match[0])
        except ValueError:
            continue
        if address.is_global:
            yield Span(match.start(), match.start() + len(match[0].rstrip(":")), "ip", "contextual")


_APPS = (
    *("qq", "微信", "wechat", "weixin", "wx", "vx", "v信", "薇信", "威信", "企鹅", "telegram", "whatsapp", "skype"),
    "line",
    "discord",
    "signal",
    "电报",
    "钉钉",
)
_LATIN_APPS = tuple(app.encode() for app in _APPS if app.isascii())
_OTHER_APPS = tuple(app for app in _APPS if not app.isascii())


def _places(text: AnyStr, piece: AnyStr) -> Iterator[int]:
    at = text.find(piece)
    while at >= 0:
        yield at
        at = text.find(piece, at + 1)


def _named_handles(text: Text) -> Iterator[re.Match[str]]:
    """The pattern, tried only where an app's name stands: everywhere it would take longer than all other kinds."""
    places = {place for app in _LATIN_APPS for place in _places(text.outline, app)}
    if text.num_han:
        places |= {place for app in _OTHER_APPS for place in _places(text.lowered, app)}
    end = 0
    for place in sorted(places):
        if place >= end and (match := _HANDLE.match(text.folded, place)):
            end = match.end()
            yield match


def _handles(text: Text) -> Iterator[Span]:
    for match in _named_handles(text):
        app, mark, handle = match["app"].lower(), match["mark"], match["handle"]
        if _after_letter(text.folded, match.start()) or handle.lower().strip("@") in _HANDLE_WORDS | {"10000"}:
            continue
        named = bool(mark.strip()) and mark.strip() not in ("群", "公众")
        if handle.isdigit():
            sure = named or app in ("qq", "微信", "vx", "v信", "薇信", "威信")
            sure = sure and (app not in ("line", "signal", "discord", "skype", "telegram") or len(handle) >= 7)
            sure = sure and not (app == "qq" and handle.startswith(("2009", "2010")) and len(handle) == 4)
        elif app in ("line", "signal"):
            sure = "id" in mark.lower() or (
                any(map(str.isdigit, handle)) and mark.strip() in (":", "：") and "_" in handle
            )
        else:
            sure = _looks_like_handle(handle, named)
        if sure:
            yield Span(*match.span("handle"), "im_handle")


def _looks_like_handle(handle: str, named: bool) -> bool:
    """Digits or underscores in it; after 微信号： a plain word will do, unless it is an English phrase's first."""
    coded = any(char.isdigit() or char in "_" for char in handle) or handle.startswith("@")
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
    if any(app in outline for app in _LATIN_APPS) or (text.num_han and any(app in text.lowered for app in _OTHER_APPS)):
        yield from _handles(text)
