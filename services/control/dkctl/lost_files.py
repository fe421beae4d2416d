"""Which files a lost segment changed: the history of a site knows the frames by their paths, wherever their bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffkeeper.domain import errors, positions
from dkctl import client

# Lost segments that are asked for, frames that are asked for at once, paths that are given.
MAX_SEGMENTS = 20
FRAMES_A_PAGE = 5000
MAX_FILES = 100


def add_to(found: dict[str, Any], control: client.Control) -> None:
    """Give each lost segment of a health report its ``files``, ``files_total`` and ``files_complete`` (false where a frame
    changed more than a history tells of it); ``files_trouble`` where nobody knows.
    """
    for volume in found["volumes"]:
        for one in volume["lost"][:MAX_SEGMENTS]:
            if "first" not in one:
                continue
            first, last = positions.parse(one["first"]), positions.parse(one["last"])
            try:
                frames = list(_frames(control, volume["volume"], first, last))
            except errors.DiffKeeperError as error:
                one["files_trouble"] = error.message
                continue
            paths = list(
                dict.fromkeys(path["path"] or "." for frame in reversed(frames) for path in frame["paths"])
            )
            one["files"], one["files_total"] = paths[:MAX_FILES], len(paths)
            one["files_complete"] = all(frame["paths_total"] == len(frame["paths"]) for frame in frames)


def _frames(
    control: client.Control, volume: str, first: positions.Position, last: positions.Position
) -> Iterator[dict[str, Any]]:
    """The frames of a stretch of the log, from the history of a site, in order."""
    # Nothing stands at sequence 0 of an epoch, so the place before a first frame is one to begin behind.
    after = positions.Position(first.epoch, max(0, first.sequence - 1))
    while after < last:
        query = [("after", str(after)), ("limit", str(FRAMES_A_PAGE)), ("activity", "0")]
        page = control.history(volume, "log", query)["frames"]
        placed = [(positions.parse(frame["position"]), frame) for frame in page]
        yield from (frame for position, frame in placed if first <= position <= last)
        if not placed or placed[-1][0] <= after:
            return
        after = placed[-1][0]


def in_words(one: dict[str, Any], shown: int = 3) -> str:
    """The files of a lost segment in a few words, for a table."""
    if "files" not in one:
        return "unknown: " + one["files_trouble"] if "files_trouble" in one else ""
    more = max(0, one["files_total"] - shown)
    text = ", ".join(one["files"][:shown]) + (f" and {more} more" if more else "")
    return text if one["files_complete"] else f"{text} and others"
