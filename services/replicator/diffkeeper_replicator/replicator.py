"""The volumes of one site: made at first mention, resumed at start, closed in order at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from diffkeeper.domain import errors, volumes
from diffkeeper.log import event_log
from diffkeeper_replicator.cursor import Role, VolumeFiles
from diffkeeper_replicator.replica import Replica, Spawn
from diffkeeper_replicator.undo_log import Bounds


class Replicator:
    def __init__(
        self,
        log: event_log.EventLog,
        directory: Path,
        volumes_directory: Path,
        spawn: Spawn,
        now_us: Callable[[], int],
        *,
        allow_setid: bool = False,
        undo_bounds: Bounds | None = None,
    ) -> None:
        self._undo_bounds = undo_bounds
        self.site = log.site
        self._log = log
        self._directory = directory
        self._volumes_directory = volumes_directory
        self._spawn = spawn
        self._now_us = now_us
        self._allow_setid = allow_setid
        self.replicas: dict[str, Replica] = {}

    async def resume(self) -> None:
        """Take up every role that was wanted before."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for found in sorted(self._directory.iterdir()):
            if (found / "role.json").exists() or (found / "promise.json").exists():
                await self._open(found.name).resume()

    def get(self, volume: str) -> Replica:
        replica = self.replicas.get(volume)
        if replica is None:
            raise errors.NotFound(
                f"no volume {volume} is known at {self.site}", reason="unknown-volume", hint="dkctl status"
            )
        return replica

    async def put_role(self, volume: str, role: Role) -> Replica:
        _check(volume, role)
        replica = self.replicas.get(volume) or self._open(volume)
        await replica.put_role(role)
        return replica

    def get_or_open(self, volume: str) -> Replica:
        """For promises, which a site can be asked for before it ever heard of the volume."""
        volumes.check_name("volume", volume)
        return self.replicas.get(volume) or self._open(volume)

    def journal_bytes(self) -> dict[str, int]:
        """How large the journal of each volume is on disk."""
        sizes: dict[str, int] = {}
        for volume in list(self.replicas):
            found = (self._directory / volume / "journal").glob("*.journal")
            sizes[volume] = sum(path.stat().st_size for path in found)
        return sizes

    async def trim_journal(self, volume: str, sequence: int) -> int:
        """Let go of a volume's journal up to a sequence that its history holds; how many bytes that freed."""
        replica = self.replicas.get(volume)
        return 0 if replica is None else await replica.trim_journal(sequence)

    async def close(self) -> None:
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    def _open(self, volume: str) -> Replica:
        replica = Replica(
            volume,
            self._log,
            VolumeFiles(self._directory / volume, self._undo_bounds),
            self._volumes_directory / volume,
            self._spawn,
            self._now_us,
            allow_setid=self._allow_setid,
        )
        self.replicas[volume] = replica
        return replica


def _check(volume: str, role: Role) -> None:
    volumes.check_name("volume", volume)
    if role.role not in ("follow", "lead"):
        raise errors.Refused(f"{role.role!r} is not a role", reason="bad-role", hint="use follow or lead")
    if role.mode != volumes.Mode.EXCLUSIVE.value:
        raise errors.Refused(
            f"this replicator keeps no volumes of mode {role.mode!r}", reason="shared-not-available"
        )
    if role.path is not None and not Path(role.path).is_absolute():
        raise errors.Refused(f"{role.path!r} is not an absolute path", reason="bad-path")
    epochs = [link.epoch for link in role.chain]
    if epochs != sorted(set(epochs)) or any(epoch < 1 for epoch in epochs):
        raise errors.Refused(
            f"the epochs of a chain rise, and these do not: {epochs}", reason="bad-chain", epochs=str(epochs)
        )
    for link in role.chain:
        volumes.check_name("site", link.site)
        if link.parent is not None:
            try:
                link.parent.tip()
            except ValueError as error:
                raise errors.Refused(f"{link.parent.hash!r} is not a hash", reason="bad-chain") from error
