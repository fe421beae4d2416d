"""The port to the leases of volumes: one record a volume, changed by compare-and-set, agreed on by a majority of sites.

An adapter promises: a write is stored only if the record had exactly the expected revision; revisions of a volume
only rise; an answer to ``write`` means that a majority has it. A read may be old, never invented: whoever acts on one does
so by a write. What comes out is bytes nobody vouches for, so records are checked when they are read.
"""

from __future__ import annotations

from typing import Protocol

from diffkeeper.domain import errors, leases


class LeaseStore(Protocol):
    async def prepare(self, volume: str) -> None:
        """Make the place for a volume's lease, or check it. Raises Transient while there is no majority."""

    async def read(self, volume: str) -> leases.Held | None:
        """The record; None when there never was one. Raises Unreachable or TimedOut when nobody answers, NotFound without
        ``prepare``, Corrupt for what is no record.
        """

    async def write(self, lease: leases.Lease, revision: int) -> leases.Held:
        """Store ``lease`` if its volume's record has ``revision`` (0: has none).

        Raises Fenced (reason ``lease-moved``) when it has another, TimedOut when it is unknown whether it was stored,
        Unreachable when it was not.
        """

    async def lead_elsewhere(self, volume: str, site: str) -> bool:
        """Have the record kept going by another site than ``site``; whether that was so already.

        Its death then costs nobody the time of an election, just when the lease is needed.
        """

    async def close(self) -> None: ...


def moved(volume: str, revision: int) -> errors.Fenced:
    return errors.Fenced(
        f"the lease of volume {volume} is not at revision {revision} any more",
        reason="lease-moved",
        hint="somebody else changed it: read it again before drawing a conclusion",
        volume=volume,
    )
