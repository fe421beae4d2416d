"""Numbers of system calls that the observer has to know, for the machine it runs on."""

from __future__ import annotations

import platform

from diffkeeper_capture.records import URING_CALL

_NAMES = {
    "x86_64": {
        1: "write",
        18: "pwrite",
        20: "writev",
        296: "pwritev",
        328: "pwritev2",
        74: "fsync",
        75: "fdatasync",
        277: "sync_file_range",
        206: "AIO",
        209: "AIO",
        425: "io_uring",
        285: "fallocate",
        40: "sendfile",
        275: "splice",
        326: "copy_file_range",
        16: "clone",
        261: "futimesat",
        280: "utimensat",
    },
    "aarch64": {
        64: "write",
        68: "pwrite",
        66: "writev",
        70: "pwritev",
        287: "pwritev2",
        82: "fsync",
        83: "fdatasync",
        84: "sync_file_range",
        0: "AIO",
        2: "AIO",
        425: "io_uring",
        47: "fallocate",
        71: "sendfile",
        76: "splice",
        285: "copy_file_range",
        29: "clone",
        88: "utimensat",
    },
}
_HERE = _NAMES.get(platform.machine(), {})
_SET_TIMES = frozenset(number for number, name in _HERE.items() if name in ("utimensat", "futimesat"))
# Calls whose bytes are in their records, unless two of them met.
PLAIN_WRITES = frozenset({"write", "pwrite", "writev", "pwritev", "pwritev2"})


def call_name(number: int) -> str:
    if number & URING_CALL:
        return "io_uring"
    return _HERE.get(number, f"call-{number}")


def sets_times(number: int) -> bool:
    """Whether this call on a descriptor sets times."""
    return number in _SET_TIMES
