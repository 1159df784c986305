"""How a training process uses memory on the CPU, settled once before its first matrix product.

Two defaults suit training badly. glibc gives freed blocks back and maps them anew, and each 4 KB page faults once:
freed blocks up to 32 MB are kept here and used again (larger ones too would fragment the heap when streams change their
length, 10.2 GB instead of 7.1: those few have a `Scratch`), and what a step has scattered is given back at its end. And
oneDNN keeps a kernel for each of the last 1,024 shapes, while packed streams bring new shapes every step: 96 hold the
tiles of attention and a few streams. Numbers: docs/journal.md.
"""

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_LARGEST_INT = 2**31 - 1
_NUM_KERNELS = "96"


def settle_memory() -> None:
    """Keep freed memory, and few kernels, for the whole process.

    What the user's environment already says about kernels stays. A process that has multiplied matrices before keeps
    oneDNN's own limit: it is read once.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _NUM_KERNELS)
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def release_memory() -> None:
    """Give the holes between live blocks back, once a step: streams of the next one have other lengths and would not
    fit into them. Costs about a tenth of a second.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        _ = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return None  # another C library
    return libc
