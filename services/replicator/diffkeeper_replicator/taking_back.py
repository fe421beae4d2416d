"""Has a replica follow in the directory that a fenced leader of this site left: gathers what is known of it, then has
it taken back (``reclaim``).

What is known: the leader's own stream beyond the parent and what its agent had spooled (the branch's frames), and which
inode was which id when its agent or an earlier promotion last wrote that down.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffkeeper import tree_files
from diffkeeper.domain import clocks, errors, frames, trees
from diffkeeper_replicator import directory, orphan_branches, reclaim
from diffkeeper_replicator.chains import Link
from diffkeeper_replicator.cursor import DirectoryNote, Role, VolumeFiles
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.reclaim import Left
from diffkeeper_replicator.subscriber import Subscriber


@dataclass(frozen=True, slots=True)
class Wish:
    """A directory to take back: the reign that left it, and the frame the chain goes on from."""

    epoch: int
    link: Link
    parent: frames.Tip
    path: Path
    agent_tail: Path | None
    agent_state: Path | None

    @property
    def marker(self) -> str:
        return f"reclaimed:{self.epoch}@{self.parent.position}"


def wish_of(role: Role, site: str, path: Path, note: DirectoryNote | None) -> Wish | None:
    """What a role asks to be taken back; None when nothing, or when it was done."""
    asked = role.reclaim
    if asked is None:
        return None
    links = [link.link() for link in role.chain]
    for link, following in itertools.pairwise(links):
        if link.epoch == asked.epoch and link.site == site and following.parent is not None:
            wish = Wish(
                asked.epoch,
                link,
                following.parent,
                path,
                Path(asked.tail) if asked.tail else None,
                Path(asked.tree_state) if asked.tree_state else None,
            )
            done = (
                note is not None and not note.left and note.adopted == wish.marker and note.path == str(path)
            )
            return None if done else wish
    raise errors.Refused(
        f"epoch {asked.epoch} of {site} is not in the chain with an end; its directory is not taken back",
        reason="bad-chain",
    )


async def tail_of(wish: Wish, subscriber: Subscriber) -> list[frames.Frame]:
    """The frames of the reign beyond the parent, from its own stream and then from its agent's spool, as far as they
    continue each other.
    """
    tip, tail = wish.parent, []
    found = [frame async for frame in subscriber.beyond(wish.link, wish.parent.position)]
    spooled = list(orphan_branches.read_frames(wish.agent_tail)) if wish.agent_tail is not None else []
    for frame in [*found, *spooled]:
        if frame.position.epoch == wish.epoch and frames.follows(tip, frame) is frames.Follows.NEXT:
            tail.append(frame)
            tip = frames.Tip(frame.position, frame.hash)
    return tail


def take_back(
    files: VolumeFiles,
    volume: str,
    site: str,
    wish: Wish,
    tail: Sequence[frames.Frame],
    journal: Journal,
    now_us: int,
    *,
    allow_setid: bool,
) -> directory.Directory:
    """The directory at the parent, ready to follow. Blocking; again after a crash.

    Raises Transient while it cannot be yet, and Corrupt ``not-reclaimed`` when it cannot be at all: then the directory
    is as it was left, or has its branch whole.
    """
    note = note_of(volume, site, wish.link.epoch, wish.parent, tail, "forced failover", now_us, wish.path)
    left = Left(note, tail, _identities(files, wish))
    try:
        taken = reclaim.reclaim(files.orphans, wish.path, journal, wish.parent, left, allow_setid=allow_setid)
    except errors.Transient:
        raise
    except (errors.DiffKeeperError, OSError) as error:
        raise errors.Corrupt(
            f"{wish.path} could not be taken back into the main line: {error}",
            reason="not-reclaimed",
            hint="the replica is built in a new directory instead; this one is kept as it is",
            cause=getattr(error, "reason", type(error).__name__),
        ) from error
    made = directory.take_over(
        files, wish.path, taken.state, taken.base_end, wish.marker, allow_setid=allow_setid
    )
    reclaim.done(files.orphans, note.name)
    return made


def note_of(
    volume: str,
    site: str,
    epoch: int,
    parent: frames.Tip,
    tail: Sequence[frames.Frame],
    why: str,
    now_us: int,
    path: Path,
) -> orphan_branches.Note:
    """``branch.json`` of what ``site`` holds of an epoch beyond a parent. The name is that of neither time nor chance,
    so that what was broken off goes on with the same branch.
    """
    return orphan_branches.Note(
        name=f"{site}-{epoch}-{parent.position.sequence}",
        volume=volume,
        site=site,
        epoch=epoch,
        parent=str(parent.position),
        parent_hash=parent.hash.hex(),
        end=str(tail[-1].position if tail else parent.position),
        frames=len(tail),
        why=why,
        made_us=now_us,
        path=str(path),
        first_us=clocks.to_micros(tail[0].header.first) if tail else 0,
        last_us=clocks.to_micros(tail[-1].header.last) if tail else 0,
    )


def _identities(files: VolumeFiles, wish: Wish) -> dict[int, trees.Identity]:
    """Later knowledge over earlier. What cannot be read is done without: names and content decide anyway."""
    known: dict[int, trees.Identity] = {}
    for path in (files.promoted, wish.agent_state):
        if path is None:
            continue
        try:
            known |= tree_files.load(path).identities
        except (OSError, errors.Corrupt):
            continue
    return known
