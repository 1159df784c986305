"""Whether a text can hold one stretch many times in a row: a look that costs little, before a pattern that costs much.

A stretch of p characters that stands twelve times in a row makes 11 p places in a row at which the text equals itself p
places on. Every eighth place is looked at, four characters at a time; so no such text is missed, and nearly all others
are ruled out.
"""

import numpy as np

LONGEST, TIMES = 30, 12  # characters of a stretch; how often it stands in a row
_STEP, _WINDOW = 8, 4
_MULTIPLIERS = np.uint32(0x01000193), np.uint32(0x9E3779B1)
# Of a run of 11 p places those at which a window fits, and how many of them a grid of every eighth place hits for sure.
_NEEDED = np.array([((TIMES - 1) * period - _WINDOW + 1) // _STEP for period in range(1, LONGEST + 1)])


def may_repeat(text: str) -> bool:
    """False only where no stretch of 1 to 30 characters stands twelve times in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(codes) < TIMES:
        return False
    key = np.zeros(len(codes) + LONGEST + _WINDOW, np.uint32)
    key[: len(codes)] = codes
    twos = key[:-1] * _MULTIPLIERS[0] + key[1:]
    fours = twos[:-2] * _MULTIPLIERS[1] + twos[2:]  # the same where four characters are
    size = (len(codes) - 1) // _STEP + 1
    # Row by row the windows at the distances 0 to 30 from every eighth place.
    windows = np.ndarray((LONGEST + 1, size), np.uint32, fours, 0, (4, 4 * _STEP))
    same = windows[1:] == windows[0]
    likely = np.flatnonzero(np.add.reduce(same, axis=1, dtype=np.intp) >= _NEEDED)
    return any(_longest_run(same[place]) >= _NEEDED[place] for place in likely.tolist())


def _longest_run(same: np.ndarray) -> int:
    breaks = np.flatnonzero(~np.concatenate(([False], same, [False])))
    return int(np.diff(breaks).max()) - 1
