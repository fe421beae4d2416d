"""A clone of a replica's directory at one position: for drills, and for readers of a follower.

Made between two runs of applying, so it is a crash image like the replica itself. The journal goes on
meanwhile: what is confirmed does not wait for a clone. On file systems with reflinks it costs neither time
nor room; elsewhere it is a copy, and refused where there is no room for it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors, frames
from diffkeeper_replicator.replica import Replica
from diffkeeper_replicator.replicator import Replicator

# Left free for the replica itself, which must never wait for room because of a clone.
SPARE_BYTES = 256 * 1024 * 1024


class _To(msgspec.Struct, forbid_unknown_fields=True):
    to: str


def add_routes(app: web.Application, replicator: Replicator) -> None:
    async def clone(request: web.Request) -> web.Response:
        body = await http.read_body(request, _To)
        return http.json_response(await make(replicator.get(request.match_info["volume"]), Path(body.to)))

    app.add_routes([web.post("/v1/volumes/{volume}/clone", clone)])


async def make(replica: Replica, to: Path) -> dict[str, Any]:
    """Copy what is applied to a new directory ``to``; its position, and how long applying waited for it."""
    if not to.is_absolute() or to.exists() or not to.parent.is_dir():
        raise errors.Refused(
            f"{to} is no new directory in one that exists", reason="bad-path", hint="give another", path=to
        )
    replayer = replica.replayer
    if replayer is None:
        raise errors.Refused(
            f"{replica.volume} is not followed at {replica.site}", reason="not-following", hint="dkctl status"
        )
    opened = replayer.directory
    if opened is None:
        raise replayer.trouble or errors.Transient("the replica is being opened", reason="opening")
    if not opened.base_complete:
        raise errors.Refused(
            f"the replica of {replica.volume} at {replica.site} is not complete yet",
            reason="base-incomplete",
            hint="dkctl status shows how far it is",
        )

    def work() -> frames.Tip:
        _copy(replica.path, to)
        return opened.tip

    began = time.monotonic()
    try:
        tip: frames.Tip = await replayer.in_thread(work)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, to, ignore_errors=True)
        raise
    return {
        "path": str(to),
        "position": str(tip.position),
        "hash": tip.hash.hex(),
        "took_ms": round((time.monotonic() - began) * 1000, 3),
    }


def _copy(source: Path, to: Path) -> None:
    room = os.statvfs(to.parent)
    has_room = _allocated(source) + SPARE_BYTES < room.f_bavail * room.f_frsize
    # Links to one file stay so, holes stay holes; owners, modes, times and extended attributes are kept.
    reflink = "auto" if has_room else "always"
    command = ["cp", "--archive", "--one-file-system", f"--reflink={reflink}", "--", str(source), str(to)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    why = said[0] if said else f"cp ended with {done.returncode}"
    if not has_room:
        raise errors.Transient(
            f"there is no room for a copy of {source}, and it cannot be cloned without one: {why}",
            reason="disk-full",
            hint=f"free space on the file system of {to.parent} (df -h), or use one with reflinks (XFS, btrfs)",
        )
    raise errors.DiffKeeperError(f"{source} could not be cloned: {why}", reason="clone-failed")


def _allocated(directory: Path) -> int:
    total = 0
    waiting = [str(directory)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
