"""The C library's heap, for daemons that make and drop blocks of megabytes all day.

Giving such blocks back and having them zeroed by the kernel anew takes as long as compressing what is in them.
What stays with the process is bounded, because what is in work is. One arena for all threads: each would keep blocks
of its own. Without glibc nothing is done.
"""

from __future__ import annotations

import ctypes

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of glibc's malloc.h.
_PARAMETERS = {-3: 32 * 1024 * 1024, -1: 8 * 1024 * 1024, -8: 1}


def hold() -> None:
    """Keep freed blocks for the next; call it before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _PARAMETERS.items():
            mallopt(parameter, value)


def trim() -> None:
    """Give back what is free now: after starting, which takes more memory than running."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
