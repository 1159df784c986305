"""What a rule is: a pure function from a text to a `Verdict`, with its source, its version and examples that test it.

Surprising: rules share what they compute of a text (`Text` keeps it), because folding and counting the same
characters for every rule would cost more than the rules themselves.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.characters import ACCENTED, HAN, SIMPLIFIED, TRADITIONAL, WIDE, kinds_of, kinds_of_ascii
from hanlin.curation.fingerprints import Hashes, folded, unit_hashes, unit_hashes_of
from hanlin.text.language import Evidence, measure

Action = Literal["keep", "drop", "mask", "replace", "rewrite", "to_rejected", "flag"]
Severity = Literal["sensitive", "personal", "contextual"]

_HEAD = 30_000  # characters
_FOLDED = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_ASCII_LETTERS = bytes(code if chr(code).isalpha() and code < 128 else 0x20 for code in range(256))
_ASCII_WORDS = bytes(0x61 if chr(code).isalpha() and code < 128 else 0x20 for code in range(256))


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
    def kinds(self) -> NDArray[np.uint16]:
        """Of every character, as bits of `characters`."""
        return kinds_of(self.raw)

    @cached_property
    def _all_kinds(self) -> int:
        return kinds_of_ascii(self.raw) if self.raw.isascii() else int(np.bitwise_or.reduce(self.kinds))

    def has(self, kind: int) -> bool:
        """Whether a character of this kind of `characters` is in the text."""
        return bool(self._all_kinds & kind)

    def count(self, kind: int, limit: int | None = None) -> int:
        """Characters of this kind, among the first `limit`."""
        return int(np.count_nonzero(self.kinds[:limit] & kind)) if self.has(kind) else 0

    @cached_property
    def folded(self) -> str:
        """Full-width letters, digits and signs as ASCII; every character keeps its place."""
        return self.raw.translate(_FOLDED) if self.has(WIDE) else self.raw

    @cached_property
    def lowered(self) -> str:
        """Lower case, character for character (İ would become two)."""
        lowered = self.folded.lower()
        if len(lowered) == len(self.folded):
            return lowered
        return "".join(small if len(small := char.lower()) == 1 else char for char in self.folded)

    @cached_property
    def outline(self) -> bytes:
        """The lower case as ASCII, a question mark for every other character: quick to search, each in its place."""
        return self.lowered.encode("ascii", "replace")

    @cached_property
    def num_han(self) -> int:
        return self.count(HAN)

    @cached_property
    def words(self) -> list[str]:
        """Runs of Latin letters, folded."""
        if self.has(ACCENTED):
            return _LATIN.findall(self.folded)
        return self.folded.encode("ascii", "replace").translate(_ASCII_LETTERS).decode("ascii").split()

    @cached_property
    def num_words(self) -> int:
        """As many as `words`, which take longer to be made than to be counted."""
        if "words" in self.__dict__ or self.has(ACCENTED):
            return len(self.words)
        marks = self.folded.encode("ascii", "replace").translate(_ASCII_WORDS)
        return marks.count(b" a") + marks.startswith(b"a")

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The different words, in lower case."""
        return frozenset(map(str.lower, self.words))

    @cached_property
    def lines(self) -> list[str]:
        return self.raw.split("\n")

    @cached_property
    def size(self) -> int:
        """Length in units a reader would count: Han characters and Latin words."""
        return self.num_han + self.num_words

    @cached_property
    def variant(self) -> Literal["Hans", "Hant"] | None:
        """Simplified or Traditional, by the first 2,000 characters (`text.language.chinese_variant`)."""
        balance = self.count(SIMPLIFIED, 2000) - self.count(TRADITIONAL, 2000)
        return "Hans" if balance > 0 else "Hant" if balance < 0 else None

    @cached_property
    def evidence(self) -> Evidence:
        return measure(self.head)

    @property
    def head(self) -> str:
        """The beginning, by which a language is judged: stripping code and names from more would take seconds."""
        return self.raw[:_HEAD]

    @cached_property
    def simplified(self) -> str:
        """NFKC, lower case and Simplified (`fingerprints.folded`): what texts are compared by."""
        return folded(self.raw)

    @cached_property
    def units(self) -> Hashes:
        """A hash for each unit of `simplified`."""
        return unit_hashes(self.simplified)


def count_units(texts: Iterable[Text]) -> None:
    """Compute the `units` of several texts together, which takes less time."""
    left = [text for text in texts if "units" not in text.__dict__]
    for text, units in zip(left, unit_hashes_of([text.simplified for text in left]), strict=True):
        text.units = units


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
