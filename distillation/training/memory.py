"""Keep freed memory in the process, so that the next step does not pay for it again.

A training step on a CPU allocates and frees gigabytes of activations.  glibc gives large blocks back to the system as they are freed, and the system
hands them out anew page by page, each cleared first; that can cost as much as the products.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST_INT = 2**31 - 1
_PAD = 64 << 20  # bytes by which the heap grows at a time


def keep_pages() -> bool:
    """Tell glibc's allocator to serve every block from the heap and never to shrink it.  Returns whether it did: elsewhere nothing happens."""
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST_INT), (_TOP_PAD, _PAD))


def give_back_pages() -> bool:
    """The opposite, for comparisons: glibc's own behaviour, with the thresholds that it has come to after some large blocks were freed."""
    done = _set((_MMAP_MAX, 1 << 16), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_TOP_PAD, 128 << 10))
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(*settings: tuple[int, int]) -> bool:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
