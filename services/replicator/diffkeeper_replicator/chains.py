"""The chain of reigns of a volume: which origin stream holds the next frame, and what a frame found there
means.

Pure. A link is one reign: the site whose stream holds its frames, and the frame that its first one continues
(the end of the reign before). A reader takes the frames of a link up to that end and never beyond: what a
fenced writer wrote after it belongs to no chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffkeeper.domain import errors, frames


@dataclass(frozen=True, slots=True)
class Link:
    site: str
    epoch: int
    # The frame before the first of this reign; None while nobody has told and its first frame was not seen.
    parent: frames.Tip | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read next: a link, and where its part of the chain ends (None: it is the last, or the end is
    unknown).
    """

    index: int
    link: Link
    end: frames.Tip | None
    # The next reign exists, and where this one ends is still to be found out.
    end_unknown: bool


def next_reading(tip: frames.Tip, chain: Sequence[Link]) -> Reading | None:
    """The link that continues ``tip``; None for an empty chain. Raises Corrupt when the tip is not on the
    chain.

    Reason ``tail-beyond-parent``: the tip is of a reign whose last frames the chain left behind; facts
    ``parent``, ``tip``.
    """
    for index, link in enumerate(chain):
        if tip.position.epoch > link.epoch:
            continue
        if tip.position.epoch < link.epoch:
            if index > 0 and link.parent is not None and tip != link.parent:
                raise _beyond(tip, link.parent, link)
            reading = _reading(index, chain)
            if reading.end is None or reading.end.position.epoch >= link.epoch:
                return reading
            # The next reign continues what this one continued: its leader died before anybody saw a frame of it.
            continue
        reading = _reading(index, chain)
        if reading.end is None or tip.position < reading.end.position:
            return reading
        if tip != reading.end:
            raise _beyond(tip, reading.end, chain[index + 1])
    if chain:
        raise errors.Corrupt(
            f"the journal stands at {tip.position}, an epoch that the wanted chain does not have; nothing "
            "was changed",
            reason="epoch-unknown",
            hint="give the replica its whole chain, or rebuild it",
            tip=str(tip.position),
        )
    return None


def _reading(index: int, chain: Sequence[Link]) -> Reading:
    following = chain[index + 1] if index + 1 < len(chain) else None
    end = following.parent if following is not None else None
    return Reading(index, chain[index], end, following is not None and end is None)


def _beyond(tip: frames.Tip, parent: frames.Tip, link: Link) -> errors.Corrupt:
    return errors.Corrupt(
        f"this replica holds frames up to {tip.position}, and epoch {link.epoch} at {link.site} goes on from "
        f"{parent.position}; nothing was mixed or thrown away",
        reason="tail-beyond-parent",
        hint="rebuild the replica: its tail is put into orphans first",
        parent=str(parent.position),
        tip=str(tip.position),
    )


@dataclass(frozen=True, slots=True)
class Take:
    """The frame continues the tip."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Not for the journal: a fence, or of an older reign in the same stream."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The journal must hold it already: compare the hashes."""


@dataclass(frozen=True, slots=True)
class Over:
    """The link has no more frames for this reader: decide anew what to read."""


Judgement = Take | Skip | Seen | Over


def judge(volume: str, tip: frames.Tip, reading: Reading, frame: frames.Frame) -> Judgement:
    """What a verified frame from the link's stream is to a journal at ``tip``. Raises Corrupt for what must
    not be there.
    """
    header = frame.header
    if header.volume != volume or header.origin != reading.link.site:
        raise errors.Corrupt(
            f"the stream holds a frame of volume {header.volume} from {header.origin}; it was not taken",
            reason="foreign-frame",
            hint=f"somebody else writes into the stream of {volume} at {reading.link.site}",
        )
    if frames.Flag.FENCE in header.flags or frame.position.epoch < reading.link.epoch:
        return Skip()
    if frame.position.epoch > reading.link.epoch:
        return Over()
    if reading.end is not None and frame.position > reading.end.position:
        return Over()
    match frames.follows(tip, frame):
        case frames.Follows.NEXT:
            return Take()
        case frames.Follows.DUPLICATE | frames.Follows.STALE:
            return Seen()
        case frames.Follows.GAP:
            raise errors.Corrupt(
                f"frames between {tip.position} and {frame.position} are missing in the stream; nothing "
                "was skipped",
                reason="gap",
                hint="the stream of the origin is damaged; it is read again",
                tip=str(tip.position),
                found=str(frame.position),
            )
        case frames.Follows.FORK:
            raise fork(frame)


def fork(frame: frames.Frame) -> errors.Corrupt:
    return errors.Corrupt(
        f"the stream holds another frame {frame.position} than the one this replica has; it was not taken",
        reason="fork",
        hint="the origin's stream was rolled back or forged; dkctl verify compares the replicas",
        position=str(frame.position),
    )
