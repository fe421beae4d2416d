"""Memory of the ring, mapped once: with an address for the compiled loop and a view for everything else.

``mmap`` objects do not tell where a mapping for reading lies, and a second mapping would count as ours twice.
"""

from __future__ import annotations

import ctypes
import mmap
import os

PAGE = mmap.PAGESIZE
_READ_ONLY, _READ_WRITE = 0x100, 0x200  # PyBUF_READ, PyBUF_WRITE
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.restype = ctypes.py_object
_view_of.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


class Mapping:
    """A shared mapping of a part of a file. Views cut from ``view`` must be gone before ``close``."""

    def __init__(self, fd: int, offset: int, size: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"mapping {size} bytes of the ring: {os.strerror(number)}")
        self.address: int = address
        self.view: memoryview = _view_of(address, size, _READ_WRITE if writable else _READ_ONLY)
        self._size = size

    def close(self) -> None:
        """Once."""
        self.view.release()
        _libc.munmap(self.address, self._size)
