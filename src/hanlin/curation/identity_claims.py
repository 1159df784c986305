"""A small classifier of sentences that name a model or maker: does the assistant claim to be, or to come from, it?

It has learned from labelled sentences (`data/identity-lines.tsv`, by `hanlin.curation.identity_training`), where names
stood for their class alone, so that it knows no maker from another: docs/curation-identity.md is its card.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hanlin.curation.identity_words import OWN, Word
from hanlin.curation.linear import NUM_BUCKETS, bundled

WEIGHTS = Path(__file__).parent / "identity.npz"
_MOST_WORDS, _MOST_LETTERS = 4, 6  # in a row, of one feature
_FILLERS, _UNKNOWN = re.compile("a+"), re.compile("x+")


def features(words: Sequence[Word]) -> NDArray[np.int64]:
    """Buckets of a sentence's features, each once: up to four words in a row, and up to six classes of words."""
    texts = ["^", *_texts(words), "$"]
    letters = "".join("W" if word.text == OWN else word.letters for word in words)
    letters = f"^{_UNKNOWN.sub('x', _FILLERS.sub('', letters))}$"
    found = {f"w{' '.join(texts[start:end])}" for start, end in _runs(len(texts), _MOST_WORDS)}
    found |= {f"l{letters[start:end]}" for start, end in _runs(len(letters), _MOST_LETTERS)}
    return np.unique(np.array([zlib.crc32(one.encode("utf-8", "surrogatepass")) % NUM_BUCKETS for one in found]))


def _runs(length: int, most: int) -> Iterator[tuple[int, int]]:
    for size in range(1, most + 1):
        for start in range(length - size + 1):
            yield start, start + size


def _texts(words: Sequence[Word]) -> Iterator[str]:
    """Words as features see them: names by their class, numbers as 0, Chinese character by character."""
    last = ""
    for word in words:
        if word.text == OWN:
            if last != OWN:
                yield "<W>"
        elif word.is_name:
            yield f"<{word.letters}>"
        elif word.text[0].isdigit():
            yield "0"
        elif word.text.isascii():
            yield word.text
        else:
            yield from word.text
        last = word.text


def is_likely(words: Sequence[Word]) -> bool:
    """Whether the sentence is such a claim, by the bundled threshold of its language."""
    model = bundled(WEIGHTS)
    return model.score(features(words)) >= (model.threshold_zh if is_chinese(words) else model.threshold_en)


def is_chinese(words: Sequence[Word]) -> bool:
    """Whether the sentence has Chinese characters beside its names."""
    return any("\u4e00" <= char <= "\u9fff" for word in words if not word.is_name for char in word.text)
