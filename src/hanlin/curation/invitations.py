"""Handles that no app's name stands right before: links (t.me/name, wa.me/number) and invitations.

搜xiaoyu_12加我微信, add me on WeChat (xiaoyu_12), ping @xiaoyu on TG: a verb that invites, an app within a few words,
and a name that is no plain word.
"""

import re
from collections.abc import Iterator

from hanlin.curation.candidates import bounded
from hanlin.curation.rule import Span, Text

_NAME = (
    r"(?P<handle>@[A-Za-z][A-Za-z0-9_.]{2,30}[A-Za-z0-9_]|(?!v\d)[A-Za-z](?=[A-Za-z.]{0,30}[_\d-])[A-Za-z0-9_.-]{3,30}[A-Za-z0-9_])"
    r"(?![A-Za-z0-9_@])"
)
_APP = r"(?:we ?chat|weixin|vx|qq|telegram|tg|whatsapp|line|signal|discord|skype)(?![a-z])"
_LINK = re.compile(
    r"(?<![A-Za-z0-9.-])(?:(?:t|telegram)\.me/(?P<handle>[A-Za-z][A-Za-z0-9_]{3,30}[A-Za-z0-9])(?![A-Za-z0-9_/])"
    r"|wa\.me/\+?(?P<phone>[1-9]\d{7,14})(?!\d))",
    re.I,
)
_NOBODYS_LINK = re.compile(
    r"(?:joinchat|addstickers|addemoji|setlanguage|share|proxy|socks|telegram|username|your_?\w*|example\w*|\w*bot|botfather)$",
    re.I,
)
_OF_MANY = re.compile(r"channel|group|频道|群组|频道|社群", re.I)
_BEFORE_APP = re.compile(
    r"(?<![a-z])(?:search|add|find|ping|dm|message|msg|text|write|contact|reach|hit|i'm|i am)(?: for| me| us| to| up)?"
    rf"(?: at| as| via)?[ ]{_NAME}[,]? (?:on|via|over|in|through) {_APP}",
    re.I,
)
_BEHIND_APP = re.compile(
    rf"(?<![a-z])(?:add|my|me|up|us|her|his)(?: (?:my|on|over|via|up|at))? {_APP}(?:[ ]?[,，(（“\"]){{1,2}}[ ]?{_NAME}",
    re.I,
)
_SOUGHT = re.compile(
    rf"(?:搜索?(?:一下)?|[小新大]号|备用号|加我|(?<=[，,、；;])号|微信名|我的|新的|[改换]成)(?:是|[:：])?"
    rf"[“\" ]?{_NAME}"
)
_ABOUT_CHAT = re.compile("微信|wechat|weixin|vx|qq|电报|telegram|飞机|(?<![a-z])tg|加我|好友|找到我")


_WORDS = {b"line", b"signal", b"tg", b"wx"}  # names of apps that stand in other words


def find_invitations(text: Text, latin: list[bytes], others: list[str]) -> Iterator[Span]:
    """Names beside an app's; `latin` and `others` are the apps of the text."""
    if not _WORDS.issuperset(latin) or (latin and b"@" in text.outline):
        for pattern in (_BEFORE_APP, _BEHIND_APP):
            for match in bounded(pattern.finditer(text.folded)):
                yield Span(*match.span("handle"), "im_handle")
    if others:
        yield from _sought(text)


def _sought(text: Text) -> Iterator[Span]:
    for match in bounded(_SOUGHT.finditer(text.folded)):
        start, end = match.start("handle"), match.end()
        before = text.lowered[max(0, match.start() - 30) : start].rsplit("\n", 1)[-1]
        after = text.lowered[end : end + 12].split("\n", 1)[0]
        if is_sought(match["handle"], after[:1]) and (_ABOUT_CHAT.search(before) or _ABOUT_CHAT.search(after)):
            yield Span(start, end, "im_handle")


def is_sought(handle: str, after: str) -> bool:
    """What one searches for in a chat app is a person only where it looks like one: not 微信搜office365教程."""
    return "_" in handle or "-" in handle or after in "，。！!,;； 加就找"


def find_links(text: Text) -> Iterator[Span]:
    """t.me/name and wa.me/number, but no bot, channel or placeholder."""
    for match in bounded(_LINK.finditer(text.folded)):
        if match["phone"]:
            yield Span(*match.span("phone"), "phone")
        elif not _NOBODYS_LINK.match(match["handle"]) and not _OF_MANY.search(
            text.lowered, max(0, match.start() - 24), match.end() + 12
        ):
            yield Span(*match.span("handle"), "im_handle")
