"""How the spool of a reign and the origin's stream are joined: where publishing begins, and what it must
continue.

Whatever happened before (a killed agent, a power cut that took the spool's unsynced tail, a stream that lost
its own tail), the frames of one epoch form one chain of hashes. Joining means finding the stream's last frame
in that chain; where it is not in it, another writer was there (Fenced) or a part is missing (Corrupt), and
nothing is published.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper.log import event_log
from diffkeeper_capture import spool as spools

# How many frames a stream may be ahead of a spool that lost its unsynced tail in a power cut.
MAX_AHEAD = 10_000


@dataclass(frozen=True, slots=True)
class Reign:
    """One epoch of one origin. ``parent`` is what its first frame continues."""

    origin: volumes.Origin
    epoch: int
    parent: frames.Tip

    @property
    def start(self) -> positions.Position:
        """Before the epoch's first frame, in the order of positions."""
        return positions.Position(self.epoch, 0)

    def may_stand_last(self, found: frames.Frame, mine: frames.Frame | None) -> bool:
        """Whether this epoch may go on behind ``found``; ``mine`` is the spool's frame at the
        same position.
        """
        header = found.header
        if found.position.epoch != self.epoch:
            return found.position.epoch < self.epoch and header.volume == self.origin.volume
        ours = (header.volume, header.origin) == (self.origin.volume, self.origin.site)
        return ours and (mine is None or mine.hash == found.hash)

    def fenced(self, found: frames.Frame) -> errors.Fenced:
        return errors.Fenced(
            f"stream {self.origin.stream} holds {found.position} of {found.header.origin}, not written by us",
            reason="fenced-by-other",
            hint="another writer has the volume; what is not in the stream stays in the spool",
            epoch=found.position.epoch,
            origin=found.header.origin,
            position=str(found.position),
            ours=self.epoch,
        )

    def unjoinable(self, why: str) -> errors.Corrupt:
        return errors.Corrupt(
            f"stream {self.origin.stream} and the spool cannot be joined: {why}; nothing was published",
            reason="log-unjoinable",
            hint="dkctl verify shows which holders have the missing frames",
            stream=self.origin.stream,
        )


@dataclass(frozen=True, slots=True)
class Joined:
    """The stream holds ``tip`` at ``sequence`` (or, before the epoch's first frame, ends there)."""

    tip: frames.Tip
    sequence: int
    adopted: int  # frames the stream had and the spool had lost


async def join(log: event_log.EventLog, spool: spools.Spool, reign: Reign) -> Joined:
    """Ask the stream where it ends, and put frames of this epoch that only it has back into the spool."""
    last = await log.last(reign.origin)
    if last is None:
        return Joined(continued(spool, reign, reign.parent), 0, 0)
    frame = frames.open_frame(last.wire)
    if not reign.may_stand_last(frame, spool.find(frame.position)):
        raise reign.fenced(frame)
    if frame.position.epoch < reign.epoch:
        return Joined(continued(spool, reign, reign.parent), last.stream_sequence, 0)
    missing = await _missing(log, spool, reign, frame, last.stream_sequence)
    for one in missing:
        spool.append(one)
    await spool.sync()
    tip = continued(spool, reign, frames.Tip(frame.position, frame.hash))
    return Joined(tip, last.stream_sequence, len(missing))


def continued(spool: spools.Spool, reign: Reign, tip: frames.Tip) -> frames.Tip:
    """``tip`` itself when the spool continues it hash by hash, or holds it as its newest frame; raises
    Corrupt otherwise.
    """
    if spool.last is not None and spool.last.epoch > reign.epoch:
        raise reign.unjoinable(f"the spool goes on to {spool.last}, an epoch after ours")
    at = max(tip.position, reign.start)
    following = spool.load(spool.places_after(at, 1))
    if following:
        header = following[0].header
        joined = header.parent == tip.position and header.parent_hash == tip.hash
    elif at == reign.start:
        joined = True
    else:
        mine = spool.find(at)
        joined = mine is not None and mine.hash == tip.hash
    if not joined:
        raise reign.unjoinable(f"the spool does not continue {tip.position}")
    return tip


async def _missing(
    log: event_log.EventLog, spool: spools.Spool, reign: Reign, last: frames.Frame, sequence: int
) -> list[frames.Frame]:
    """Frames up to ``last`` that the stream has beyond the spool, oldest first. Their chain
    must lead to what we have.
    """
    missing: list[frames.Frame] = []
    frame = last
    while spool.last is None or frame.position > spool.last:
        missing.append(frame)
        if frame.header.parent.epoch < reign.epoch:
            break
        if len(missing) > MAX_AHEAD:
            raise reign.unjoinable(f"the stream is more than {MAX_AHEAD} frames ahead of the spool")
        sequence -= 1
        stored = await log.get(reign.origin, sequence)
        if stored is None:
            raise event_log.stream_gap(reign.origin, sequence, None)
        frame = frames.open_frame(stored.wire)
        if frame.hash != missing[-1].header.parent_hash:
            raise reign.unjoinable(f"message {sequence} of the stream is not the parent of the next")
    if missing and frames.follows(newest(spool, reign), missing[-1]) is not frames.Follows.NEXT:
        raise reign.fenced(missing[-1])
    return missing[::-1]


def newest(spool: spools.Spool, reign: Reign) -> frames.Tip:
    """The spool's last frame of this epoch, else the epoch's parent: what the next frame must continue."""
    if spool.last is None or spool.last.epoch != reign.epoch:
        return reign.parent
    frame = spool.find(spool.last)
    assert frame is not None, "a spool holds its last frame"
    return frames.Tip(frame.position, frame.hash)
