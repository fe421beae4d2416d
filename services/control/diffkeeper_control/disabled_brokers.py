"""Starts brokers again that run and store nothing any more, for their disk was full.

nats-server (2.15, *measured*) disables JetStream for good at the first write of a mirror or of Raft for which its disk has no
room; and a stream that could not store a message that was published to it refuses every later one. All the rest goes on to
be served, and no page of it tells; its log does. Nothing is lost by that: what it did not store it did not acknowledge. It
stores again only after a new start, which is of use only once there is room.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from diffkeeper.domain import errors
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.processes import ProcessId

# The largest frames of several volumes, and what a start itself writes.
ROOM_BYTES = 32 * 1024 * 1024
# Of a log that has grown by more since the last look, only so much of its end is read.
LOG_BYTES = 1024 * 1024
_NO_ROOM = b"no space left on device"

_log = structlog.get_logger("disabled-brokers")


class DisabledBrokers:
    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        # By site and role: the process that once had no room, and how far its log was read.
        self._full: dict[tuple[str, str], ProcessId] = {}
        self._read: dict[tuple[str, str], int] = {}

    def troubles(self, site: str) -> list[str]:
        """For the status of the site."""
        return [
            f"{self._embedded.node_of(site, role)} may store nothing: its disk was full; it starts again once "
            f"{ROOM_BYTES // 1024 // 1024} MiB are free"
            for known, role in sorted(self._full)
            if known == site
        ]

    async def look(self, site: str) -> None:
        for role, child in self._embedded.children[site].items():
            identity = child.identity
            if self._embedded.node_of(site, role) is None or identity is None:
                continue
            if await asyncio.to_thread(self._had_no_room, site, role, identity.pid):
                self._full[site, role] = identity
            elif self._full.get((site, role), identity) != identity:
                del self._full[site, role]  # another process by now
            if (site, role) in self._full and self._room_bytes(site, role) >= ROOM_BYTES:
                await self._restart(site, role)

    async def _restart(self, site: str, role: str) -> None:
        _log.warning("a broker whose disk was full is started again", site=site, child=role)
        try:
            await self._embedded.restart_broker(site, role)
        except (errors.DiffKeeperError, OSError) as error:
            _log.warning("it could not be started; tried again", site=site, child=role, error=str(error))
        else:
            del self._full[site, role]

    def _had_no_room(self, site: str, role: str, pid: int) -> bool:
        """Whether this process has said so since the last look; each of its lines begins with its number."""
        found = new_lines(self._embedded.server_config(site, role).log_path, self._read.get((site, role), 0))
        if found is None:
            return False
        lines, self._read[site, role] = found
        return said_no_room(lines, pid)

    def _room_bytes(self, site: str, role: str) -> int:
        try:
            disk = os.statvfs(self._embedded.server_config(site, role).dir)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize


def new_lines(path: Path, after: int) -> tuple[list[bytes], int] | None:
    """What a log has had since it was ``after`` bytes long, and how long it is now; None when it cannot be read.

    A disk that does not answer is its broker's trouble, and told there: control lives on.
    """
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            file.seek(max(after, end - LOG_BYTES))
            return file.read(max(0, end - file.tell())).splitlines(), end
    except OSError:
        return None


def said_no_room(lines: list[bytes], pid: int) -> bool:
    """Whether a process says in its log that a write found no room."""
    return any(line.startswith(b"[%d]" % pid) and line.rstrip().endswith(_NO_ROOM) for line in lines)
