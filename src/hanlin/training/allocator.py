"""Keeps the C allocator from handing memory back to the system after every tensor.

glibc maps each large block anew, and every page of it faults once: on a 2-core machine that took a third of a training
step of Gemma 3 270M, whose embedding gradients alone are 671 MB (docs/journal.md). Kept in the heap, freed blocks are
used again at once.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep and reuse freed memory, for the whole process; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(option, value) for option, value in options)
