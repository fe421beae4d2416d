"""Files by their handle: found whatever their names are now, and known to be gone when they are."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_HEAD = struct.Struct("=Ii")
_MAX_BYTES = 128
_AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def of(fd: int) -> bytes:
    """The handle of an open file. Raises OSError where the file system has none."""
    buffer = ctypes.create_string_buffer(_HEAD.pack(_MAX_BYTES, 0), _HEAD.size + _MAX_BYTES)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH) != 0:
        raise _os_error("name_to_handle_at")
    (length, _) = _HEAD.unpack_from(buffer.raw)
    return buffer.raw[: _HEAD.size + length]


def open_file(mount_fd: int, handle: bytes, mode: int = os.O_RDONLY) -> int | None:
    """The file; None when it is no more. ``mount_fd`` is anything on its file system."""
    fd = _libc.open_by_handle_at(mount_fd, handle, mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if fd >= 0:
        return int(fd)
    if ctypes.get_errno() in (errno.ESTALE, errno.ENOENT):
        return None
    raise _os_error("open_by_handle_at")


def _os_error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
