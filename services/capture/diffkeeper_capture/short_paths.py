"""Unix sockets at paths longer than the kernel's 107 bytes: reached through an open directory. Standard library
only, for the run wrapper.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PATH_MAX_BYTES = 107


@contextlib.contextmanager
def short(path: str) -> Iterator[str]:
    """A name for ``path`` that fits into an address, while the block lasts. Only its last part must be short."""
    if len(os.fsencode(path)) <= PATH_MAX_BYTES:
        yield path
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)
