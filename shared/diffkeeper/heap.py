"""The C library's heap, for daemons that make and drop blocks of megabytes all day.

Giving such blocks back and having them zeroed by the kernel anew takes as long as compressing what is in them.
What stays with the process is bounded, because what is in work is. One arena for all threads: each would keep blocks
of its own. Without glibc nothing is done.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
KEPT_BYTES = 8 * 1024 * 1024


def hold(kept_bytes: int = KEPT_BYTES) -> None:
    """Keep freed blocks for the next, at most so much at the heap's end; call it before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)
        mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give back what is free now: after starting, which takes more memory than running."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
