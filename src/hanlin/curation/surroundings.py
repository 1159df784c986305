"""The texts of a row in order, each with what a rule may see around it: one way for a run and for `--explain`."""

from collections.abc import Iterator, Sequence

from hanlin.curation.rows import ASKED, Slot
from hanlin.curation.rule import Around, Text


def with_surroundings(slots: Sequence[Slot], texts: Sequence[Text]) -> Iterator[tuple[Text, Around]]:
    """Every text with its side and, for an answer, the last prompt before it (the first one where none came yet)."""
    asked = next((text for (side, _), text in zip(slots, texts, strict=True) if side in ASKED), None)
    for (side, _), text in zip(slots, texts, strict=True):
        if side in ASKED:
            asked = text
        yield text, Around(None if side in (*ASKED, "document") else asked, side)
