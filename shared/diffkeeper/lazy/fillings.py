"""The trees of this machine that are filled while they are used, and how their filling is stopped.

They are found by their mounts: a tree that is shown is mounted from a hidden folder beside its target.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import msgspec

from diffkeeper.lazy import holders, keeper, places, sources, trees

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")
_LOOK_EVERY_S = 0.05
# The worker itself may have a file open that it filled a moment ago.
_UNUSED_S = 3.0
# For the worker to see that its mount is away.
_END_S = 20.0


def shown() -> list[Path]:
    """The targets of all trees that can be used now, in the order of their mounts."""
    found = []
    for line in _MOUNTS.read_bytes().splitlines():
        _, _, _, root, at, *_ = line.split(b" ")
        target = Path(os.fsdecode(_plain(at)))
        if target.name and _plain(root).endswith(
            os.fsencode(f"/{places.folder_of(target).name}/{trees.TREE}")
        ):
            found.append(target)
    return found


def is_of(target: Path, deployment: Path) -> bool:
    """Whether what fills a tree asks this deployment: it said so, or stands in its directory."""
    if target.is_relative_to(deployment):
        return True
    try:
        where = msgspec.json.decode(
            (places.folder_of(target) / sources.NAME).read_bytes(), type=sources.Address
        )
    except (OSError, msgspec.DecodeError):
        return False
    return where.deployment is not None and Path(where.deployment) == deployment


def stop(target: Path) -> bool:
    """Take the mount away and end what fills it; False when something uses it, and then nothing is changed.

    What is filled by then stays, and the same command goes on with it. Of a mount of the past nothing stays.
    """
    ends = time.monotonic() + _UNUSED_S
    while not places.hide(target):
        if time.monotonic() > ends:
            return False
        time.sleep(_LOOK_EVERY_S)
    _await_end(target, places.folder_of(target))
    return True


def _await_end(target: Path, folder: Path) -> None:
    ends = time.monotonic() + _END_S
    while time.monotonic() < ends:
        try:
            lock = trees.lock_of(folder, make=False)
        except FileNotFoundError:
            return
        except BlockingIOError:
            time.sleep(_LOOK_EVERY_S)
            continue
        try:
            (folder / keeper.ENDED).touch()  # also where its workers had been killed before
            holders.release_all(folder)
            if trees.read_note(folder).temporary:
                places.discard(folder, target)
            return
        finally:
            os.close(lock)


def _plain(field: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field)
