"""The lease of a volume: who may reign, and how long others must have heard nothing before they may take over. Pure.

A lease is a record in a store that changes only by compare-and-set. Its holder renews it, which changes its revision. No
two clocks are ever compared: the holder trusts its own renewal for ``hold_ms`` counted from before it was *sent*, an
observer takes the lease for expired when it has seen the same revision for ``ttl_ms`` of its own monotonic time. The
observer's time begins after the renewal was stored and the holder's before, so the holder has stopped first, whatever
either wall clock says, as long as both monotonic clocks run at the same rate to within the margin of a third.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffkeeper.domain import errors

DEFAULT_TTL_MS = 500
SHORTEST_TTL_MS = 200
LONGEST_TTL_MS = 600_000


@dataclass(frozen=True, slots=True)
class Lease:
    """Who reigns. ``beat`` counts renewals, so that no two records of a reign are alike."""

    volume: str
    epoch: int
    site: str
    ttl_ms: int
    beat: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as the store has it. Revisions of one volume only rise."""

    lease: Lease
    revision: int


def hold_ms(ttl_ms: int) -> float:
    """How long after the sending of a renewal its holder relies on it."""
    return ttl_ms * 2 / 3


def renew_every_ms(ttl_ms: int) -> float:
    return ttl_ms / 5


def check_ttl(ttl_ms: int) -> None:
    if not SHORTEST_TTL_MS <= ttl_ms <= LONGEST_TTL_MS:
        raise errors.Refused(
            f"a lease of {ttl_ms} ms is outside of {SHORTEST_TTL_MS} to {LONGEST_TTL_MS} ms",
            reason="bad-lease-ttl",
            hint=f"--lease-ttl-ms {DEFAULT_TTL_MS}",
        )


def renewed(lease: Lease) -> Lease:
    return replace(lease, beat=lease.beat + 1)


@dataclass(frozen=True, slots=True)
class Watch:
    """What an observer has seen of one lease. Times are seconds of its own monotonic clock.

    Only time in which the store answered counts: while nobody can renew, nobody's silence means anything.
    """

    held: Held
    since: float

    def expired(self, now: float) -> bool:
        return (now - self.since) * 1000 >= self.held.lease.ttl_ms

    def silent_ms(self, now: float) -> float:
        return (now - self.since) * 1000


def saw(watch: Watch | None, held: Held, now: float) -> Watch:
    """The watch after the store answered with ``held``. A question nobody answered ends a watch: begin with None."""
    if watch is None or watch.held.revision != held.revision:
        return Watch(held, now)
    return watch
