"""Conversations that are one text, with headers between the turns.

    Anthropic HH    "\\n\\nHuman: …\\n\\nAssistant: …"
    HelpSteer       "…\\n<extra_id_1>Assistant\\n…\\n<extra_id_1>User\\n…", the user first

A text is taken for one only where it begins as they do: an answer may well quote a dialogue.
"""

import re
from collections.abc import Callable

from hanlin.types import Message

_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
_HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_EXTRA = re.compile(r"(?:\A|\n)<extra_id_1>(User|Assistant)\n")


def is_transcript(text: str) -> bool:
    """Whether it begins as Anthropic's do and holds an answer."""
    return text[:9].lstrip().startswith("Human:") and any(match[1] == "Assistant" for match in _HUMAN.finditer(text))


def transcript_turns(text: str) -> tuple[Message, ...]:
    """The turns of a transcript, without the white space around them."""
    return tuple(Message(role, body.strip()) for _, role, body in _pieces(text, _HUMAN))


def prompt_turns(text: str) -> tuple[Message, ...]:
    """A prompt that is one text: its turns where it is a transcript that waits for an answer, else itself."""
    if is_transcript(text) and text.rstrip().endswith("\n\nAssistant:"):
        return transcript_turns(text)[:-1]
    if "<extra_id_1>" in text and _EXTRA.search(text):
        return tuple(Message(role, body.strip()) for _, role, body in _pieces(text, _EXTRA))
    return (Message("user", text),)


def with_turns(text: str, exchange: Callable[[str, bool], str]) -> str:
    """The transcript with each turn's text exchanged for what `exchange(text, it is the last one)` makes of it."""
    pieces = _pieces(text, _HUMAN)
    made = []
    for index, (header, _, body) in enumerate(pieces, start=1):
        inner = body.strip()
        before, _, after = body.partition(inner) if inner else (body, "", "")
        made.append(header + before + exchange(inner, index == len(pieces)) + after)
    return "".join(made)


def _pieces(text: str, headers: re.Pattern[str]) -> list[tuple[str, str, str]]:
    """(header, role, body) of each turn; end to end they are the text."""
    found = list(headers.finditer(text))
    first = found[0].start() if found else len(text)
    pieces = [("", "user", text[:first])] if first else []
    ends = [match.start() for match in found[1:]] + [len(text)]
    bodies = [text[match.end() : end] for match, end in zip(found, ends, strict=True)]
    return pieces + [(match[0], _ROLES[match[1]], body) for match, body in zip(found, bodies, strict=True)]
