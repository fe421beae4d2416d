"""A tail of the journal that no chain goes on from: copied aside frame by frame, verified, and only then
taken out of the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions
from diffkeeper_replicator.cursor import VolumeFiles
from diffkeeper_replicator.journal import Journal


def set_aside(files: VolumeFiles, parent: positions.Position) -> int:
    """Move every frame after ``parent`` to ``orphans/<position of the first>/``; how many there were.
    Blocking.
    """
    journal = Journal.open(files.journal)
    try:
        tail = list(journal.frames_after(parent))
        _move(files, journal, parent, tail)
        return len(tail)
    finally:
        journal.close()


def set_own_aside(files: VolumeFiles, journal: Journal, parent: positions.Position, site: str) -> None:
    """The same where all of the tail is this site's own: it was journalled while this site led, and the directory is not
    of this journal. Otherwise nothing is done. Blocking.
    """
    tail = list(journal.frames_after(parent))
    if all(frame.header.origin == site for frame in tail):
        _move(files, journal, parent, tail)


def _move(
    files: VolumeFiles, journal: Journal, parent: positions.Position, tail: Sequence[frames.Frame]
) -> None:
    if not tail:
        return
    folder = files.orphans / str(tail[0].position)
    folder.mkdir(parents=True, exist_ok=True)
    for frame in tail:
        path = folder / f"{frame.position}.frame"
        atomic_files.write_bytes(path, frame.wire)
        if frames.open_frame(path.read_bytes()).hash != frame.hash:
            raise errors.Corrupt(f"{path} does not read back as it was written", reason="orphan-damaged")
    atomic_files.fsync_directory(files.orphans)
    journal.cut_after(parent)
