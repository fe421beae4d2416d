"""Numbers of system calls that the observer has to know, for the machine it runs on."""

from __future__ import annotations

import platform

_NAMES = {
    "x86_64": {
        74: "fsync",
        75: "fdatasync",
        277: "sync_file_range",
        206: "AIO",
        425: "io_uring",
    },
    "aarch64": {
        82: "fsync",
        83: "fdatasync",
        84: "sync_file_range",
        0: "AIO",
        425: "io_uring",
    },
}
_HERE = _NAMES.get(platform.machine(), {})


def call_name(number: int) -> str:
    return _HERE.get(number, f"call-{number}")
