"""The journal: what it returned from ``append`` is there after any end, and what is torn or rotten never
comes out.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from tests.support import small_disks
from tests.support.made_logs import FrameChain

from diffkeeper.domain import deltas, errors, frames, positions
from diffkeeper_replicator import journal as journals
from diffkeeper_replicator.journal import Journal


def _frames(count: int, chain: FrameChain | None = None, size: int = 50) -> list[frames.Frame]:
    chain = chain or FrameChain()
    rng = random.Random(count)
    return [chain.frame([deltas.write(2, i, rng.randbytes(size))]) for i in range(count)]


def _hashes(journal: Journal) -> list[bytes]:
    return [frame.hash for frame in journal.frames_after(positions.START)]


def test_frames_come_back_in_order_over_many_segments_and_by_position(tmp_path: Path) -> None:
    made = _frames(200)
    journal = Journal.open(tmp_path, segment_bytes=5_000)
    for first in range(0, 200, 7):
        journal.append(made[first : first + 7])
    assert len(list(tmp_path.glob("*.journal"))) > 3
    for opened in (journal, Journal.open(tmp_path, segment_bytes=5_000)):
        assert opened.tip == frames.Tip(made[-1].position, made[-1].hash)
        assert _hashes(opened) == [frame.hash for frame in made]
        for frame in made:
            assert opened.read(frame.position).wire == frame.wire
        after = [frame.position for frame in opened.frames_after(made[99].position)]
        assert after == [frame.position for frame in made[100:]]
        opened.close()


def test_a_frame_that_does_not_follow_is_refused_with_its_whole_batch(tmp_path: Path) -> None:
    made = _frames(5)
    fork = FrameChain(tip=frames.Tip(made[0].position, bytes(32))).frame()
    journal = Journal.open(tmp_path)
    journal.append(made[:2])
    for bad in (made[4], made[0], fork):
        with pytest.raises(errors.Corrupt) as caught:
            journal.append([made[2], bad])
        assert caught.value.reason == "does-not-follow"
    assert _hashes(journal) == [frame.hash for frame in made[:2]]
    with pytest.raises(errors.NotFound):
        journal.read(made[2].position)
    with pytest.raises(errors.NotFound):
        journal.read(positions.Position(9, 1))
    journal.append(made[2:])
    journal.close()


def test_a_tail_torn_at_any_byte_is_cut_and_what_was_confirmed_is_kept(tmp_path: Path) -> None:
    made = _frames(4)
    journal = Journal.open(tmp_path / "j")
    journal.append(made[:2])
    kept = journal.size_bytes
    journal.append(made[2:])
    whole = journal.size_bytes
    journal.close()
    (segment,) = (tmp_path / "j").glob("*.journal")
    content = segment.read_bytes()
    third = kept + (whole - kept) // 2
    for cut in range(kept, whole):
        for torn in (content[:cut], content[:cut] + bytes(whole - cut)):  # shorter, or long with zeros
            segment.write_bytes(torn)
            opened = Journal.open(tmp_path / "j")
            good = 2 if cut < third else 3
            assert opened.tip.hash == made[good - 1].hash, cut
            assert opened.cut_bytes == len(torn) - (kept if good == 2 else third)
            opened.append(made[good:])
            assert _hashes(opened) == [frame.hash for frame in made]
            opened.close()


def test_a_record_lost_from_an_unsynced_group_takes_the_later_ones_with_it(tmp_path: Path) -> None:
    made = _frames(6)
    journal = Journal.open(tmp_path)
    journal.append(made[:2])
    kept = journal.size_bytes
    journal.append(made[2:])  # one group: its pages may reach the disk in any order
    journal.close()
    (segment,) = tmp_path.glob("*.journal")
    with segment.open("r+b") as file:
        file.seek(kept + 10)
        file.write(bytes(60))
    opened = Journal.open(tmp_path)
    assert opened.tip.hash == made[1].hash
    opened.close()


def test_a_bit_flipped_in_what_was_confirmed_is_damage_and_not_a_torn_tail(tmp_path: Path) -> None:
    made = _frames(6)
    journal = Journal.open(tmp_path / "good")
    for frame in made:
        journal.append([frame])
    journal.close()
    (segment,) = (tmp_path / "good").glob("*.journal")
    last = segment.stat().st_size - journals.HEAD_BYTES - len(made[-1].wire)
    rng = random.Random(5)
    for _ in range(200):
        at = rng.randrange(last)
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (copied,) = (tmp_path / "bad").glob("*.journal")
        content = bytearray(copied.read_bytes())
        content[at] ^= 1 << rng.randrange(8)
        copied.write_bytes(content)
        with pytest.raises(errors.Corrupt) as caught:
            Journal.open(tmp_path / "bad")
        assert caught.value.reason == "journal-damaged", at
        assert copied.read_bytes() == content, "damage is left as it is"


def test_rot_in_an_older_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    made = _frames(60)
    journal = Journal.open(tmp_path, segment_bytes=3_000)
    for frame in made:
        journal.append([frame])
    journal.close()
    oldest = min(tmp_path.glob("*.journal"))
    content = bytearray(oldest.read_bytes())
    content[journals.HEAD_BYTES + 40] ^= 4
    oldest.write_bytes(content)
    opened = Journal.open(tmp_path, segment_bytes=3_000)
    with pytest.raises(errors.Corrupt):
        _hashes(opened)
    opened.close()
    with pytest.raises(errors.Corrupt):
        Journal.open(tmp_path, segment_bytes=3_000, distrust_cache=True)
    (tmp_path / "away").mkdir()
    opened = Journal.open(tmp_path, segment_bytes=3_000)
    second = sorted(tmp_path.glob("*.journal"))[1]
    second.rename(tmp_path / "away" / second.name)
    opened = Journal.open(tmp_path, segment_bytes=3_000)
    with pytest.raises(errors.Corrupt):
        list(opened.frames_after(made[2].position))
    opened.close()


def test_a_full_disk_keeps_nothing_of_the_batch_and_goes_on_later(tmp_path: Path) -> None:
    made = _frames(40, size=100_000)
    with small_disks.mounted(tmp_path / "small") as disk:
        journal = Journal.open(disk / "j", segment_bytes=500_000)
        done = 0
        while small_disks.SIZE_BYTES - journal.size_bytes > 310_000:
            journal.append(made[done : done + 3])
            done += 3
        with pytest.raises(errors.Transient) as caught:
            journal.append(made[done : done + 3])
        assert caught.value.reason == "disk-full"
        assert _hashes(journal) == [frame.hash for frame in made[:done]]
        journal.close()
        journal = Journal.open(disk / "j", segment_bytes=500_000)
        assert journal.cut_bytes == 0
        with pytest.raises(errors.Transient):
            journal.append(made[done : done + 3])
        for old in sorted((disk / "j").glob("*.journal"))[:2]:
            old.unlink()
        journal.append(made[done : done + 3])
        assert journal.tip.hash == made[done + 2].hash
        journal.close()


def test_after_a_failed_fsync_nothing_is_confirmed_until_it_was_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _frames(4)
    journal = Journal.open(tmp_path)
    journal.append(made[:1])

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", failing)
        with pytest.raises(errors.Corrupt) as caught:
            journal.append(made[1:2])
        assert caught.value.reason == "journal-poisoned"
    assert journal.poisoned
    assert journal.tip.hash == made[0].hash
    with pytest.raises(errors.Corrupt):  # the disk works again, and still
        journal.append(made[1:2])
    journal.close()
    opened = Journal.open(tmp_path, distrust_cache=True)
    opened.append(made[opened.tip.position.sequence :])
    assert _hashes(opened) == [frame.hash for frame in made]
    opened.close()


@pytest.mark.parametrize("keep", [0, 1, 25, 26, 59, 60])
def test_cutting_a_tail_leaves_exactly_what_comes_before(tmp_path: Path, keep: int) -> None:
    made = _frames(60)
    journal = Journal.open(tmp_path, segment_bytes=3_000)
    for frame in made:
        journal.append([frame])
    journal.cut_after(made[keep - 1].position if keep else positions.START)
    assert _hashes(journal) == [frame.hash for frame in made[:keep]]
    journal.append(made[keep:])
    journal.close()
    again = Journal.open(tmp_path, segment_bytes=3_000)
    assert _hashes(again) == [frame.hash for frame in made]
    again.close()


class _JournalThatGrowsAtTheEnd(Journal):
    """Frames of ``later`` are appended right after a reader has found that there is nothing more."""

    later: list[frames.Frame] = []  # noqa: RUF012

    def _find(self, sequence: int) -> tuple[journals._Segment, int] | None:
        place = super()._find(sequence)
        if place is None and self.later:
            self.append([self.later.pop(0)])
        return place


def test_a_frame_appended_while_a_reader_is_at_the_end_is_not_missing(tmp_path: Path) -> None:
    first, second = _frames(2)
    journal = _JournalThatGrowsAtTheEnd.open(tmp_path)
    assert isinstance(journal, _JournalThatGrowsAtTheEnd)
    journal.append([first])
    journal.later = [second]
    assert [frame.position for frame in journal.frames_after(positions.START)] == [first.position]
    assert [frame.position for frame in journal.frames_after(first.position)] == [second.position]
    journal.close()
