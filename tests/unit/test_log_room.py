"""Room made ready in spool and journal: small frames overwrite zeros, and after any end exactly the good records
are found again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import framing

from diffkeeper.domain import errors, frames, positions
from diffkeeper_capture import spool as spools
from diffkeeper_capture import spool_records
from diffkeeper_replicator import journal as journals

FRAMES = list(framing.chain(6, size=60))
START = positions.START


def killed_spool(directory: Path, count: int, synced: int) -> Path:
    """The segment of a spool whose process was killed; the room behind its records stays."""
    spool = spools.Spool.open(directory / "open")
    for number, frame in enumerate(FRAMES[:count], 1):
        spool.append(frame)
        if number <= synced:
            asyncio.run(spool.sync())
    shutil.copytree(directory / "open", directory / "killed")
    spool.close()
    (segment,) = (directory / "killed").glob("*.spool")
    return segment


def spooled(directory: Path) -> list[frames.Frame]:
    spool = spools.Spool.open(directory)
    try:
        return list(spool.frames_after(START))
    finally:
        spool.close()


def killed_journal(directory: Path, count: int, together: int = 0) -> Path:
    """The same of a journal; the last ``together`` frames are one batch."""
    journal = journals.Journal.open(directory / "open")
    for frame in FRAMES[: count - together]:
        journal.append([frame])
    journal.append(FRAMES[count - together : count])
    shutil.copytree(directory / "open", directory / "killed")
    journal.close()
    (segment,) = (directory / "killed").glob("*.journal")
    return segment


def journalled(directory: Path) -> list[frames.Frame]:
    journal = journals.Journal.open(directory)
    try:
        return list(journal.frames_after(START))
    finally:
        journal.close()


Read = Callable[[Path], list[frames.Frame]]


def spool_bytes(count: int) -> int:
    return sum(spool_records.HEAD_BYTES + len(frame.wire) for frame in FRAMES[:count])


def journal_bytes(count: int) -> int:
    return sum(journals.HEAD_BYTES + len(frame.wire) for frame in FRAMES[:count])


def test_small_frames_are_written_into_room_and_an_orderly_end_gives_it_back(tmp_path: Path) -> None:
    spool, journal = killed_spool(tmp_path / "s", 5, 5), killed_journal(tmp_path / "j", 5)
    assert spool.stat().st_size >= spools.ROOM_BYTES
    assert journal.stat().st_size >= journals.ROOM_BYTES
    (closed,) = (tmp_path / "s" / "open").glob("*.spool")
    assert closed.stat().st_size == spool_bytes(5)
    (closed,) = (tmp_path / "j" / "open").glob("*.journal")
    assert closed.stat().st_size == journal_bytes(5)
    assert spooled(spool.parent) == journalled(journal.parent) == FRAMES[:5]


@pytest.mark.parametrize("kind", ["spool", "journal"])
def test_the_last_record_torn_at_each_byte_leaves_what_is_before_it_and_can_be_written_again(
    tmp_path: Path, kind: str
) -> None:
    """The rest of a torn record is what stood there before: zeros. What was written of it may also be flipped."""
    read: Read
    if kind == "spool":
        segment, ends, read = killed_spool(tmp_path, 4, 3), spool_bytes, spooled
    else:
        segment, ends, read = killed_journal(tmp_path, 4), journal_bytes, journalled
    whole = segment.read_bytes()
    begin, end = ends(3), ends(4)
    for at in range(begin, end):
        flipped = bytearray(whole)
        flipped[at] ^= 0x41
        for image in (whole[:at] + bytes(len(whole) - at), bytes(flipped)):
            segment.write_bytes(image)
            expected = FRAMES[:3] if image != whole else FRAMES[:4]
            assert read(segment.parent) == expected, at
            assert segment.stat().st_size == ends(len(expected)), "what is behind is cut off"
    assert append_and_read(kind, segment.parent) == FRAMES


def append_and_read(kind: str, directory: Path) -> list[frames.Frame]:
    if kind == "spool":
        spool = spools.Spool.open(directory)
        for frame in FRAMES[3:]:
            spool.append(frame)
        spool.close()
        return spooled(directory)
    journal = journals.Journal.open(directory)
    journal.append(FRAMES[3:])
    journal.close()
    return journalled(directory)


def test_a_record_missing_in_the_middle_of_what_was_not_synced_takes_the_later_ones_with_it(
    tmp_path: Path,
) -> None:
    """A power cut writes pages in any order: zeros in the middle, whole records behind them."""
    segment = killed_spool(tmp_path / "s", 5, 2)
    image = bytearray(segment.read_bytes())
    image[spool_bytes(3) : spool_bytes(4)] = bytes(spool_bytes(4) - spool_bytes(3))
    segment.write_bytes(image)
    assert spooled(segment.parent) == FRAMES[:3]
    segment = killed_journal(tmp_path / "j", 5, together=3)
    image = bytearray(segment.read_bytes())
    image[journal_bytes(3) : journal_bytes(4)] = bytes(journal_bytes(4) - journal_bytes(3))
    segment.write_bytes(image)
    assert journalled(segment.parent) == FRAMES[:3]


def test_zeros_in_the_place_of_a_record_that_was_durable_are_damage(tmp_path: Path) -> None:
    for segment, ends, read in (
        (killed_spool(tmp_path / "s", 5, 5), spool_bytes, spooled),
        (killed_journal(tmp_path / "j", 5), journal_bytes, journalled),
    ):
        image = bytearray(segment.read_bytes())
        image[ends(2) : ends(3)] = bytes(ends(3) - ends(2))
        segment.write_bytes(image)
        with pytest.raises(errors.Corrupt):
            read(segment.parent)
        assert segment.read_bytes() == image, "nothing was changed"


def test_room_in_a_segment_that_was_left_is_no_torn_tail(tmp_path: Path) -> None:
    """Killed after a new segment was begun and before the old one's room was given back on disk."""
    spool = spools.Spool.open(tmp_path / "s", segment_bytes=spool_bytes(2) + 10)
    for frame in FRAMES:
        spool.append(frame)
    spool.close()
    segments = sorted((tmp_path / "s").glob("*.spool"))
    assert len(segments) == 3
    for segment in segments[:-1]:
        segment.write_bytes(segment.read_bytes() + bytes(700))
    assert spooled(tmp_path / "s") == FRAMES


def test_a_large_frame_gets_no_room_behind_it(tmp_path: Path) -> None:
    (large,) = framing.chain(1, size=spools.SMALL_BYTES + 1)
    spool, journal = spools.Spool.open(tmp_path / "s"), journals.Journal.open(tmp_path / "j")
    spool.append(large)
    journal.append([large])
    for found in ((tmp_path / "s").glob("*.spool"), (tmp_path / "j").glob("*.journal")):
        (path,) = found
        assert path.stat().st_size < 2 * spools.SMALL_BYTES
    spool.close()
    journal.close()


def test_a_spool_of_the_version_before_is_left_as_it_is(tmp_path: Path) -> None:
    segment = killed_spool(tmp_path, 2, 2)
    segment.write_bytes(b"DKS1" + segment.read_bytes()[4:])
    before = segment.read_bytes()
    with pytest.raises(errors.Corrupt) as caught:
        spools.Spool.open(segment.parent)
    assert caught.value.reason == "unknown-format"
    assert segment.read_bytes() == before
