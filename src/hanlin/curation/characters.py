"""What kinds of characters a text holds, looked up all at once: so that a rule need not search for what is not there.

One table gives the kinds of every code point as bits; a text's characters go through it as an array. A search for a
class of characters by pattern costs ten times as much, and most rules begin with one.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hanlin.text.lexicon import SIMPLIFIED as SIMPLIFIED_CHARACTERS
from hanlin.text.lexicon import TRADITIONAL as TRADITIONAL_CHARACTERS

HAN, SIMPLIFIED, TRADITIONAL, KANA, WIDE, ACCENTED, DASH, PROVINCE, PICTURE, SUSPECT = (1 << bit for bit in range(10))
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_RANGES: dict[int, tuple[tuple[int, int], ...]] = {
    HAN: ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x3007, 0x3007), (0x20000, 0x323AF)),
    KANA: ((0x3041, 0x30FF),),
    # Letters, digits, @ and what joins them in numbers and handles, of full width.
    WIDE: ((0xFF0B, 0xFF0B), (0xFF0D, 0xFF0E), (0xFF10, 0xFF19), (0xFF20, 0xFF3A), (0xFF3F, 0xFF3F), (0xFF41, 0xFF5A)),
    ACCENTED: ((0xC0, 0x24F),),
    DASH: ((0x2010, 0x2015),),
    # Nothing below U+231A starts an emoji but signs with a selector (U+FE0F).
    PICTURE: ((0x1F000, 0x10FFFF), (0x231A, 0x2B55), (0xFE0F, 0xFE0F)),
    # What wrongly decoded text begins with: see `quality.check_garbled`.
    SUSPECT: (
        (0, 8),
        (0xB, 0xB),
        (0xE, 0x1F),
        (0xC3, 0xC3),
        (0xE2, 0xE2),
        (0xE4, 0xE9),
        (0xEF, 0xEF),
        (0xE000, 0xF8FF),
    ),
}
_SINGLE = {
    SIMPLIFIED: "".join(SIMPLIFIED_CHARACTERS),
    TRADITIONAL: "".join(TRADITIONAL_CHARACTERS),
    PROVINCE: PROVINCES,
    SUSPECT: "\ufffd锟烫屯å锘鈥",
}


@cache
def _table() -> NDArray[np.uint16]:
    table = np.zeros(0x110000, np.uint16)
    for kind, ranges in _RANGES.items():
        for start, end in ranges:
            table[start : end + 1] |= kind
    for kind, characters in _SINGLE.items():
        table[[ord(char) for char in characters]] |= kind
    return table


_ASCII_SUSPECTS = bytes(code for start, end in _RANGES[SUSPECT] for code in range(start, end + 1) if code < 128)
_ASCII_OTHERS = bytes(code for code in range(128) if code not in _ASCII_SUSPECTS)


def kinds_of_ascii(text: str) -> int:
    """The kinds of all characters together; of ASCII only some control characters are of one."""
    return SUSPECT if text.encode().translate(None, _ASCII_OTHERS) else 0


def kinds_of(text: str) -> NDArray[np.uint16]:
    """The kinds of every character, as a sum of bits."""
    return _table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
