"""Keeps the C allocator from handing memory back to the system after every tensor.

glibc gives freed blocks back and maps them anew, and each 4 KB page faults once: a training step on the CPU spent a
tenth of its time there (docs/journal.md). Freed blocks up to 32 MB are kept and used again. Keeping larger ones too
fragments the heap when streams change their length (10.2 GB instead of 7.1): those few have a `Scratch` instead.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep and reuse freed memory, for the whole process; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    done = [
        mallopt(_M_MMAP_THRESHOLD, 32 << 20),
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT),
        mallopt(_M_TOP_PAD, 64 << 20),
    ]
    return all(done)
