"""What two texts are compared by: an exact key, and MinHash signatures over shingles that know Chinese.

A unit is a Latin word, a number, or a single Han character; a shingle is three units in a row. Both are counted on a
folded text: NFKC, lower case, Traditional characters as Simplified (OpenCC). Hashing is done on whole arrays of code
points, since a Python loop over characters would take longer than MinHash itself.
"""

import hashlib
import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain, pairwise

import numpy as np
from numpy.typing import NDArray

from hanlin.errors import ConfigError

Hashes = NDArray[np.uint64]

NUM_PERMUTATIONS, NUM_BANDS, SHINGLE = 120, 20, 3
_SEED = 42
_ONE = np.uint64(1)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def check_extras() -> None:
    """Raise ConfigError where the extra `curate` is not installed."""
    missing = [name for name in ("opencc", "rensa", "zstandard") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'curation needs {" and ".join(missing)}: pip install "hanlin[curate]"')


@cache
def _simplifier():
    from opencc import OpenCC

    return OpenCC("t2s")


@cache
def _kinds() -> NDArray[np.uint8]:
    """Of every code point: 1 a unit by itself, 2 part of a word, 0 neither."""
    kinds = np.zeros(0x110000, np.uint8)
    for start, end in ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x370, 0x1FFF)):
        kinds[start : end + 1] = 2
    for start, end in ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0x20000, 0x323AF)):
        kinds[start : end + 1] = 1
    kinds[[0xD7, 0xF7]] = 0
    return kinds


@cache
def _powers() -> Hashes:
    with np.errstate(over="ignore"):
        return np.cumprod(np.full(4096, 0x100000001B3, np.uint64))


@cache
def _plain_characters() -> NDArray[np.uint32]:
    """NFKC and lower case of every character that has one of each and joins with no other; 0 for the rest."""
    table = np.zeros(0x110000, np.uint32)
    table[0x3400:0xA000] = np.arange(0x3400, 0xA000)
    for code in (*range(1, 0x3400), *range(0xF900, 0xFFF0)):
        made = unicodedata.normalize("NFKC", chr(code)).lower()
        joins = unicodedata.category(chr(code))[0] == "M" or 0x1100 <= code < 0x1200 or code == 0x3A3
        if len(made) == 1 and not joins and unicodedata.category(made)[0] != "M":
            table[code] = ord(made)
    return table


def plain(text: str) -> str:
    """NFKC and lower case."""
    if text.isascii():
        return text.lower()
    codes = _plain_characters()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
    if codes.all():
        return codes.tobytes().decode("utf-32-le", "surrogatepass")
    return unicodedata.normalize("NFKC", text).lower()


@cache
def simplified_characters() -> dict[int, str]:
    """Every Traditional character with its Simplified one, for `str.translate`: a text keeps its length."""
    han = [chr(code) for code in range(0x4E00, 0xA000)]
    made = _simplifier().convert("\n".join(han)).split("\n")
    return {ord(one): other for one, other in zip(han, made, strict=True) if one != other and len(other) == 1}


def folded(text: str) -> str:
    """NFKC, lower case, and Traditional characters as Simplified ones."""
    return text.lower() if text.isascii() else _simplifier().convert(plain(text))


def unit_hashes(text: str) -> Hashes:
    """One 64-bit hash for each unit of a folded text, in order."""
    return unit_hashes_of([text])[0]


def unit_hashes_of(texts: Sequence[str]) -> list[Hashes]:
    """`unit_hashes` of each text, computed together: most texts are too short for arrays of their own to be quick."""
    joined = "\n".join((*texts, ""))  # no unit holds a line's end
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    begins = kinds > 0
    begins[1:] &= (kinds[1:] == 1) | (kinds[:-1] != 2)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return [np.zeros(0, np.uint64)] * len(texts)
    codes, kinds = codes[starts[0] :], kinds[starts[0] :]
    lengths = np.diff(starts, append=len(joined))  # of units with what stands behind them, which counts for nothing
    offset = np.arange(len(codes)) - np.repeat(starts - starts[0], lengths)
    parts = (codes.astype(np.uint64) + _ONE) * _MIX[0] * _powers().take(offset, mode="clip")
    parts[kinds == 0] = 0
    hashes = np.add.reduceat(parts, starts - starts[0])
    bounds = np.searchsorted(starts, [0, *accumulate(len(text) + 1 for text in texts)])
    return [hashes[start:end] for start, end in pairwise(bounds.tolist())]


def grams(units: Hashes, size: int) -> Hashes:
    """The hash of every `size` units in a row; of all of them where there are fewer."""
    return grams_of([units], size)[0]


def grams_of(texts: Sequence[Hashes], size: int) -> list[Hashes]:
    """`grams` of the units of each text, computed together."""
    made = _hashed_grams(np.concatenate(texts), size) if texts else np.zeros(0, np.uint64)
    ends = accumulate(map(len, texts))
    return [
        made[end - len(units) : end - size + 1] if len(units) >= size else _hashed_grams(units, len(units))
        for units, end in zip(texts, ends, strict=True)
    ]


def _hashed_grams(units: Hashes, size: int) -> Hashes:
    if not 0 < size <= len(units):
        return np.zeros(0, np.uint64)
    total = np.zeros(len(units) - size + 1, np.uint64)
    for index in range(size):
        total = (total ^ (total >> np.uint64(29))) * _MIX[1] + units[index : index + len(total)]
    total = (total ^ (total >> np.uint64(30))) * _MIX[2]
    return total ^ (total >> np.uint64(31))


def shingles(text: str) -> Hashes:
    """The set of a text's shingles, sorted."""
    return np.unique(grams(unit_hashes(folded(text)), SHINGLE))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Similarity of two sets of shingles: shared by all."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def signatures(sets: list[Hashes]) -> NDArray[np.uint32]:
    """MinHash signatures (rensa's), one row of 120 for each set."""
    from rensa import RMinHash  # type: ignore[attr-defined]

    flat = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, NUM_PERMUTATIONS, _SEED)
    flat_rows = chain.from_iterable(matrix.to_rows())
    return np.fromiter(flat_rows, np.uint32, len(sets) * NUM_PERMUTATIONS).reshape(len(sets), NUM_PERMUTATIONS)


def exact_key(text: str) -> bytes:
    """Sixteen bytes that texts share which differ only in case, width, script, spaces and punctuation."""
    return key_of_units([unit_hashes(folded(text))])


def key_of_units(texts: Sequence[Hashes]) -> bytes:
    """`exact_key` of texts one below the other, by their units."""
    key = hashlib.blake2b(digest_size=16)
    for units in texts:
        key.update(units.tobytes())
    return key.digest()
