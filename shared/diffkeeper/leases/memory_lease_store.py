"""Leases in memory, for tests. The promises are those of the port."""

from __future__ import annotations

from diffkeeper.domain import errors, leases
from diffkeeper.leases import lease_records, lease_store


class MemoryLeases:
    """What all stores of a test share. Without a majority nobody is answered."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[int, bytes] | None] = {}
        self.has_majority = True
        self.leaders: dict[str, str] = {}


class MemoryLeaseStore:
    def __init__(self, shared: MemoryLeases) -> None:
        self._shared = shared

    async def prepare(self, volume: str) -> None:
        self._check()
        self._shared.records.setdefault(volume, None)

    async def read(self, volume: str) -> leases.Held | None:
        record = self._record(volume)
        return None if record is None else leases.Held(lease_records.decode(record[1]), record[0])

    async def write(self, lease: leases.Lease, revision: int) -> leases.Held:
        record = self._record(lease.volume)
        found = 0 if record is None else record[0]
        if found != revision:
            raise lease_store.moved(lease.volume, revision)
        self._shared.records[lease.volume] = (found + 1, lease_records.encode(lease))
        return leases.Held(lease, found + 1)

    async def lead_elsewhere(self, volume: str, site: str) -> bool:
        self._record(volume)
        if self._shared.leaders.get(volume) != site:
            return True
        del self._shared.leaders[volume]
        return False

    async def close(self) -> None:
        pass

    def _record(self, volume: str) -> tuple[int, bytes] | None:
        self._check()
        if volume not in self._shared.records:
            raise errors.NotFound(f"there is no place for a lease of {volume}", reason="no-stream")
        return self._shared.records[volume]

    def _check(self) -> None:
        if not self._shared.has_majority:
            raise errors.Unreachable("the lease store has no majority", reason="lease-store-unreachable")
