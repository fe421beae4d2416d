"""``python -m diffkeeper_replicator.materialise``: the tree of a volume, from the segments that a rescue wrote.

Reads ``*/*.dkseg`` below ``--log``, each of which must have the hash in its name, finds the main line of the history,
and replays it into an empty directory. Prints what it did as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from diffkeeper import service
from diffkeeper.domain import errors, frames, lineages, segments
from diffkeeper_replicator import verify

# Segments kept in memory: reigns alternate between streams, so the newest of each stream are near.
_KEPT = 4


class SegmentFiles:
    """The frames of a volume by their hash."""

    def __init__(self, log: Path, volume: str) -> None:
        self._volume = volume
        self._at: dict[bytes, tuple[Path, int]] = {}
        self._decoded: OrderedDict[Path, segments.Segment] = OrderedDict()
        self._paths = sorted(log.glob("*/*.dkseg"))

    def links(self) -> Iterator[lineages.Link]:
        for path in self._paths:
            segment = self._load(path)
            for sequence, frame in zip(segment.sequences, segment.frames(), strict=True):
                self._at[frame.hash] = (path, sequence)
                yield lineages.link_of(frame, sequence)

    def frames(self, main: Sequence[lineages.Link]) -> Iterator[frames.Frame]:
        for link in main:
            path, sequence = self._at[link.hash]
            yield frames.open_frame(self._load(path).wire(sequence))

    def _load(self, path: Path) -> segments.Segment:
        segment = self._decoded.get(path)
        if segment is None:
            with path.open("rb") as file:
                data = file.read(segments.MAX_BYTES + 1)
            digest = blake3(data).digest()
            if segments.name_of(digest) != path.suffixes[-2].removeprefix("."):
                raise errors.Corrupt(
                    f"{path} has not the hash in its name; nothing was replayed",
                    reason="damaged-segment",
                    hint="run the rescue again",
                )
            segment = segments.decode(data, digest)
            if segment.volume != self._volume:
                raise errors.Corrupt(f"{path} is of volume {segment.volume}", reason="foreign-segment")
            self._decoded[path] = segment
        self._decoded.move_to_end(path)
        while len(self._decoded) > _KEPT:
            self._decoded.popitem(last=False)
        return segment


def materialise(volume: str, log: Path, into: Path) -> str:
    """Replay the main line into ``into``, which must be empty; its last position as text."""
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise errors.Refused(f"{into} is not empty; nothing was written", reason="target-not-empty")
    files = SegmentFiles(log, volume)
    lineage = lineages.trace(files.links())
    return str(verify.replay(volume, files.frames(lineage.main), into).position)


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-materialise", description=__doc__)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--log", type=Path, required=True, metavar="DIR")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    try:
        position = materialise(options.volume, options.log, options.into)
    except errors.DiffKeeperError as error:
        json.dump({"error": error.to_dict()}, sys.stdout)
        sys.exit(service.exit_code(error))
    json.dump({"volume": options.volume, "position": position, "path": str(options.into)}, sys.stdout)


if __name__ == "__main__":
    main()
