"""How many look-alikes of personal data one text may hold: a close look costs microseconds, a hostile row has 100,000.

A text with more is not judged number by number: as a whole it is a list of them, and `find_personal` says so.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

MOST = 20_000  # of one kind in one text: 200 kB and more of nothing but numbers

_Candidate = TypeVar("_Candidate")


class TooMany(Exception):
    """A text has more candidates of one kind than are looked at."""


def bounded(candidates: Iterable[_Candidate], most: int = MOST) -> Iterator[_Candidate]:
    """The candidates one by one; raises TooMany after `most`."""
    for number, candidate in enumerate(candidates):
        if number == most:
            raise TooMany
        yield candidate
