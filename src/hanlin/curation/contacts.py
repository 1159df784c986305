"""Where a person can be reached on the network: mail addresses, public IP addresses, messenger handles."""

import ipaddress
import re
from collections.abc import Iterator
from typing import AnyStr

from hanlin.curation.candidates import MOST, TooMany, bounded
from hanlin.curation.cues import is_after_letter, is_quantity, says_in, words_before
from hanlin.curation.invitations import find_invitations, find_links, is_sought
from hanlin.curation.rule import Span, Text

_MAIL = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,6}([A-Za-z]{2,18})(?![A-Za-z0-9@])"
)

_BEFORE_HOST = re.compile(r"@(?=[A-Za-z0-9-]{1,63}\.[A-Za-z0-9])")
_DIGIT_DOT = re.compile(r"\d\.\d{1,3}\.\d")
_DIGITS_AND_DOTS = bytes(0x30 if 0x30 <= code <= 0x39 else code if code == 0x2E else 0x20 for code in range(256))
_HEXADECIMAL = bytes(0x68 if chr(code) in "0123456789abcdef" else code if code == 0x3A else 0x20 for code in range(256))
_IPV4 = re.compile(
    r"(?:(?<![\d.A-Za-z_-])|(?<=(?<![A-Za-z])[Ii][Pp]))(?:\d{1,3}\.){3}\d{1,3}(?![\dA-Za-z_]|\.\d|-\d|/\d)"
)

_IPV6 = re.compile(r"(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}(?![0-9A-Za-z_:])")

_HANDLE = re.compile(
    r"(?P<app>QQ|Q Q|扣扣?|抠抠|加群|群号|Q群|加[微薇V]|\+V"
    r"|微信|We ?Chat|Weixin|WX|VX|V信|薇信|威信|绿泡泡|企鹅|Telegram|WhatsApp|Skype|Line|Discord|Signal|Kakao(?:Talk)?"
    r"|电报|钉钉|飞机|TG|Insta(?:gram|(?=:))|Snapchat|抖音号|小红书号)"
    r"(?P<mark>(?:公众)?(?:[ ]|[,，][ ]?(?=id|号|账|帐))?"
    r"(?:帐号|账号|帳號|號碼|號|号码|群号|[\u4e00-\u9fff]{0,4}群|号|同号|搜索?|[❤♥]\ufe0f?"
    r"|(?:id|account|handle|number|no\.?|username|name|tag)(?![A-Za-z0-9_]))?"
    r"(?:[ ]?(?:(?:is|as)(?= )|是|为|係|叫|聊|找我|私[聊信]|contact(?= @)|[改换]成了?|[:：=]|加我?|联系"
    r"|[\u4e00-\u9fff]{1,6}(?=@)|@(?=@))){0,2}[ ]?)"
    r"(?P<handle>@?(?:live:)?(?:\.cid\.[0-9a-f]{8,20}|[A-Za-z][A-Za-z0-9_.-]{1,29}#\d{4}|[A-Za-z][A-Za-z0-9_.-]{3,29}[A-Za-z0-9_]|[1-9]\d{4,11}))(?![A-Za-z0-9_@])",
    re.I,
)
_STRONG_MARK = re.compile("[:：=号號搜]|id", re.I)  # a plain word after it is a handle
_NEXT_WORD = re.compile(" [A-Za-z]")  # WeChat: messaging app
_OWN = re.compile(r"(?:我的|my ?)$")

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

_CODE_WORDS = frozenset(
    ("token", "message", "messages", "api", "bot", "key", "url", "error", "file", "config", "client")
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
        glued = (
            match.start() > 0 and text.folded[match.start() - 1].isascii() and text.folded[match.start() - 1].isalpha()
        )
        cued = cued and not (glued and max(numbers) <= 60)
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


# The names under a sign that they share: where the sign is absent, as it mostly is, none of them is looked for.
_LATIN_APPS: dict[bytes, tuple[bytes, ...]] = {
    b"": (b"line", b"whatsapp", b"discord", b"signal", b"skype", b"kakao", b"tg"),
    b"chat": (b"wechat", b"we chat", b"snapchat"),
    b"gram": (b"telegram", b"instagram"),
    b"x": (b"wx", b"vx", b"weixin"),
    b"q": (b"qq", b"q q"),
    b"+": (b"+v",),
    b"insta:": (b"insta:",),
}
_OTHER_APPS: dict[str, tuple[str, ...]] = {
    "": ("企鹅", "电报", "钉钉", "飞机", "绿泡泡"),
    "信": ("微信", "v信", "薇信", "威信"),
    "加": ("加微", "加薇", "加v", "加群", "加我", "加好友"),
    "扣": ("扣",),
    "抠": ("抠抠",),
    "群": ("q群", "群号"),
    "号": ("抖音号", "小红书号"),
}


_NICKNAMES = (
    "vx",
    "+v",
    "v信",
    "薇信",
    "威信",
    "扣扣",
    "抠抠",
    "企鹅",
    "绿泡泡",
    "加微",
    "加薇",
    "加v",
    "加群",
    "群号",
    "q群",
    "小红书号",
    "抖音号",
)  # nobody talks about these, they give an address
_NUMBERED_APPS = ("qq", "q q", "扣", "微信", *_NICKNAMES)


_MOST_NAMES = 4 * MOST  # app names in a text: most are words, and quickly seen to be


def _places(text: AnyStr, piece: AnyStr) -> Iterator[int]:
    at = text.find(piece)
    while at >= 0:
        yield at
        at = text.find(piece, at + 1)


def _apps(text: Text) -> tuple[list[bytes], list[str]]:
    """The names of apps that occur."""
    outline, lowered = text.outline, text.lowered
    latin = [app for sign, apps in _LATIN_APPS.items() if sign in outline for app in apps if app in outline]
    if not text.num_han:
        return latin, []
    return latin, [app for sign, apps in _OTHER_APPS.items() if sign in lowered for app in apps if app in lowered]


def _named_handles(text: Text, latin: list[bytes], others: list[str]) -> Iterator[re.Match[str]]:
    """The pattern, tried only where an app's name stands: everywhere it would take longer than all other kinds."""
    places = {place for app in latin for place in _places(text.outline, app)}
    places |= {place for app in others for place in _places(text.lowered, app)}
    if not places:
        return
    end = 0
    if len(places) > _MOST_NAMES:
        raise TooMany
    for place in sorted(places):
        if place >= end and (match := _HANDLE.match(text.folded, place)):
            end = match.end()
            yield match


def _handles(text: Text, latin: list[bytes], others: list[str]) -> Iterator[Span]:
    for match in bounded(_named_handles(text, latin, others)):
        app, mark, handle = match["app"].lower(), match["mark"], match["handle"]
        if is_after_letter(text.folded, match.start()) or handle.lower().strip("@") in _HANDLE_WORDS | {"10000"}:
            continue
        named = bool(mark.strip()) and mark.strip() not in ("群", "公众")
        if app == "扣" and (len(handle) < 6 or not handle.isdigit() or _is_deducted(text, match)):
            sure = False
        elif handle.isdigit():
            sure = named or app in _NUMBERED_APPS
            sure = sure and (app not in ("line", "signal", "discord", "skype", "telegram") or len(handle) >= 7)
            sure = sure and not (app == "qq" and handle.startswith(("2009", "2010")) and len(handle) == 4)
        elif app in ("tg", "飞机", "instagram", "insta"):
            sure = handle.startswith("@") and (bool(mark.strip()) or "_" in handle)
            sure = sure or (bool(mark.strip()) and "_" in handle and any(map(str.isdigit, handle)))
        elif app in ("line", "signal"):
            sure = _is_line_handle(text.folded, match)
        elif app in ("+v", "加v") and not mark and text.folded[match.start() + 1] == "v" and handle[0].isalpha():
            sure = False  # +value_1
        else:
            strong = (app in _NICKNAMES or bool(_STRONG_MARK.search(mark))) and not mark.lower().endswith("is ")
            strong = strong and not _NEXT_WORD.match(text.folded, match.end())
            sure = _is_coded(handle, named) or (strong and _is_plain_handle(handle))
            if "搜" in mark:
                sure = sure and is_sought(handle, text.folded[match.end() : match.end() + 1])
            sure = sure or (named and _ends_own_sentence(text, match) and _is_plain_handle(handle))
        if sure:
            yield Span(*match.span("handle"), "im_handle")


def _is_line_handle(text: str, match: re.Match[str]) -> bool:
    """LINE and Signal are words too: an ID says so, or Chinese around, or "my line is" with a name that is no word."""
    mark, handle = match["mark"].lower().strip(), match["handle"]
    before = text[max(0, match.start() - 4) : match.start()].strip()
    coded = "_" in handle or any(map(str.isdigit, handle))
    if mark.endswith((":", "：")) and any(map(str.isdigit, handle)):
        return "id" in mark or "_" in handle or not before.isascii() or not mark.isascii()
    return "id" in mark or (coded and (not mark.isascii() or (mark == "is" and before.lower().endswith("my"))))


def _is_deducted(text: Text, match: re.Match[str]) -> bool:
    """折扣, 扣100000元: no QQ."""
    return text.raw[match.start() - 1 : match.start()] in tuple("折克回抵代纽") or is_quantity(
        text.lowered, match.end()
    )


def _is_coded(handle: str, named: bool) -> bool:
    """Digits or underscores in it: no plain word."""
    if any(map(str.isdigit, handle)) or handle.startswith("@") or "#" in handle:
        return True
    parted = "_" in handle or (named and "-" in handle)
    return parted and _CODE_WORDS.isdisjoint(re.split("[_-]", handle.lower()))


def _is_plain_handle(handle: str) -> bool:
    """A plain word that may be a handle after 微信号：, unless it is an English phrase's first."""
    return handle.lower() not in _HANDLE_WORDS and handle.islower() and "_" not in handle and len(handle) >= 6


def _ends_own_sentence(text: Text, match: re.Match[str]) -> bool:
    """我的微信是bluesky。"""
    after = text.folded[match.end() : match.end() + 1]
    return (
        not match["mark"].isascii()
        and after in "，。,;；！"
        and bool(_OWN.search(text.lowered[max(0, match.start() - 3) : match.start()]))
    )


def find_contacts(text: Text) -> Iterator[Span]:
    """Mail and IP addresses and handles; each pattern runs only where its sign occurs."""
    outline = text.outline
    if b"@" in outline:
        yield from _mails(text)
    if (b"::" in outline or outline.count(b":") > 6) and b"hhhh:" in outline.translate(_HEXADECIMAL):
        yield from _ipv6(text)
    if b"0.0" in outline.translate(_DIGITS_AND_DOTS) and _DIGIT_DOT.search(text.folded):
        yield from _ipv4(text)
    latin, others = _apps(text)
    if latin or others:
        yield from _handles(text, latin, others)
        yield from find_invitations(text, latin, others)
    if b".me/" in outline:
        yield from find_links(text)
