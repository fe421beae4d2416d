"""Several processes at one file: what the records say is certain must be so, byte for byte.

The twin follows the records as an observer would: exact writes are applied, and what a record calls uncertain
is read again when all is over. Its result must equal the file, so an unflagged record that lies, or stands in
the wrong place, is found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from tests.bpf.recording import Seen, Watched

from diffkeeper_capture.records import Flag, Kind, PathOp, Record

pytestmark = pytest.mark.bpf

WHOLE = 1 << 62


@dataclass
class Twin:
    """The content of one file, from its records alone, and the ranges to be read again."""

    content: bytearray = field(default_factory=bytearray)
    uncertain: list[tuple[int, int]] = field(default_factory=list)

    def apply(self, record: Record, payload: bytes) -> None:
        if record.kind == Kind.WRITE:
            self._write(record.offset, payload)
            if record.flags & Flag.OVERLAPPED:
                self.uncertain.append((record.offset, record.offset + record.length))
        elif record.kind == Kind.REREAD:
            self.uncertain.append((record.offset, record.offset + record.length))
        else:
            self._resize(0 if record.kind == Kind.OPEN else record.aux)
            if record.flags & Flag.OVERLAPPED:
                self.uncertain.append((0, WHOLE))

    def _write(self, offset: int, payload: bytes) -> None:
        if offset > len(self.content):
            self._resize(offset)
        self.content[offset : offset + len(payload)] = payload

    def _resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def read_again(self, truth: bytes) -> bytes:
        """The content with uncertain ranges taken from the file; its length too, if the end is among them."""
        for low, high in self.uncertain:
            if high >= len(truth):
                self._resize(len(truth))
            self._write(low, truth[low:high])
        return bytes(self.content)


def changes(seen: list[Seen]) -> list[Seen]:
    """Records about the content of the one file."""
    kinds = (Kind.WRITE, Kind.REREAD, Kind.SIZE, Kind.OPEN)
    return [
        (record, payload)
        for record, payload in seen
        if record.kind in kinds or (record.kind == Kind.PATH and record.offset == PathOp.TRUNCATE)
    ]


def followed(volume: Watched, seen: list[Seen]) -> Twin:
    twin = Twin()
    for record, payload in changes(seen):
        twin.apply(record, payload)
    truth = (volume.root / "a").read_bytes()
    assert twin.read_again(truth) == truth
    return twin


def flagged(seen: list[Seen]) -> int:
    return sum(bool(record.flags & Flag.OVERLAPPED) for record, _ in seen)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor: calls hardly ever overlap")
def test_appenders_with_descriptors_of_their_own_are_never_silently_wrong(volume: Watched) -> None:
    seen = volume.run("append_apart", 1500)
    followed(volume, seen)
    told = changes(seen)
    assert 0 < flagged(told) < len(told), "some appends must have met, and some not"


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_writers_that_share_a_position_are_never_silently_wrong(flags: int, volume: Watched) -> None:
    followed(volume, volume.run("share_position", 1000, flags))


@pytest.mark.parametrize("seed", range(3))
def test_a_fight_over_one_file_is_never_silently_wrong(seed: int, volume: Watched) -> None:
    seen = volume.run("fight", 800, seed)
    followed(volume, seen)


def test_renames_over_one_name_at_once_are_flagged_or_in_order(volume: Watched) -> None:
    seen = volume.run("fight_over_names", 300)
    (truth,) = (path for path in volume.root.iterdir() if path.name == "common")
    renames = [record for record, _ in seen if record.kind == Kind.PATH and record.offset == PathOp.RENAME]
    created = {r.inode: r.tgid for r, _ in seen if r.kind == Kind.OPEN and r.flags & Flag.CREATED}
    assert len(renames) == 900
    last_writer = created[truth.stat().st_ino]
    *_, last = renames
    assert last.tgid == last_writer or last.flags & Flag.OVERLAPPED_NAMES
