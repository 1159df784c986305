"""What a rule is: a pure function from a text to a `Verdict`, with its source, its version and examples that test it.

Surprising: rules share what they compute of a text (`Text` keeps it), because folding and counting the same
characters for every rule would cost more than the rules themselves.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from hanlin.text.language import Evidence, measure

Action = Literal["keep", "drop", "mask", "replace", "rewrite", "to_rejected", "flag"]
Severity = Literal["sensitive", "personal", "contextual"]

_FOLDED = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_FULL_WIDTH = re.compile(r"[\uff10-\uff19\uff20-\uff3a\uff41-\uff5a]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007\U00020000-\U000323af]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text, what kind of thing they are, and how grave that is."""

    start: int
    end: int
    kind: str
    severity: Severity = "personal"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a text. `keep` is false where it objects: why, where, and what it proposes to do."""

    keep: bool
    reason: str = ""
    spans: tuple[Span, ...] = ()
    action: Action = "keep"


KEEP = Verdict(True)


def objection(reason: str, spans: tuple[Span, ...] = (), *, action: Action = "drop") -> Verdict:
    """The verdict of a rule that found something."""
    return Verdict(False, reason, spans, action)


class Text:
    """A text and what several rules want to know of it, each computed once."""

    def __init__(self, raw: str) -> None:
        self.raw = raw

    @cached_property
    def folded(self) -> str:
        """Full-width letters, digits and signs as ASCII; every character keeps its place."""
        if self.raw.isascii() or not _FULL_WIDTH.search(self.raw):
            return self.raw
        return self.raw.translate(_FOLDED)

    @cached_property
    def lowered(self) -> str:
        """Lower case, character for character (İ would become two)."""
        lowered = self.folded.lower()
        if len(lowered) == len(self.folded):
            return lowered
        return "".join(small if len(small := char.lower()) == 1 else char for char in self.folded)

    @cached_property
    def ascii(self) -> bytes:
        """The ASCII characters alone, in lower case: a short text to look for Latin names in. What stood around other
        characters stands together here, so it can hold more than the text, never less.
        """
        return self.lowered.encode("ascii", "ignore")

    @cached_property
    def num_han(self) -> int:
        return 0 if self.raw.isascii() else sum(map(len, _HAN.findall(self.raw)))

    @cached_property
    def words(self) -> list[str]:
        """Runs of Latin letters, folded."""
        return _LATIN.findall(self.folded)

    @cached_property
    def lines(self) -> list[str]:
        return self.raw.split("\n")

    @cached_property
    def size(self) -> int:
        """Length in units a reader would count: Han characters and Latin words."""
        return self.num_han + len(self.words)

    @cached_property
    def evidence(self) -> Evidence:
        return measure(self.raw)


@dataclass(frozen=True, slots=True)
class Around:
    """What a rule may see besides the text: the prompt that it answers, and the side that it stands on."""

    prompt: Text | None = None
    side: str = "chosen"


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check. `version` goes up when a change of the rule changes verdicts; the account records it.

    `passes` and `fails` are texts that the check keeps and objects to; the tests run them.
    """

    name: str
    version: int
    english: str
    chinese: str
    source: str
    check: Callable[[Text, Around], Verdict]
    passes: tuple[str, ...] = field(default=(), repr=False)
    fails: tuple[str, ...] = field(default=(), repr=False)
