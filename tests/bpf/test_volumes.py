"""Which files belong to a volume, and who is not recorded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.bpf.conftest import RING_BYTES
from tests.bpf.recording import Seen, Watched

from diffkeeper.domain import errors
from diffkeeper_capture import bpf_probe
from diffkeeper_capture.records import NO_VOLUME, Kind

pytestmark = pytest.mark.bpf


def kinds(seen: list[Seen]) -> list[Kind]:
    return [Kind(record.kind) for record, _ in seen]


def test_what_happens_outside_every_volume_makes_no_record(volume: Watched, outside: Path) -> None:
    assert volume.lines(volume.run("elsewhere", outside)) == []


def test_files_belong_to_the_volume_they_are_below(volume: Watched, outside: Path) -> None:
    second = Watched(volume.probe, outside, volume.slot + 1000)
    fd = os.open(outside, os.O_RDONLY)
    volume.probe.watch(second.slot, fd)
    os.close(fd)
    try:
        first_seen, second_seen = volume.run("pages"), second.run("pages")
    finally:
        volume.probe.unwatch(second.slot)
    assert {record.volume for record, _ in first_seen} == {volume.slot}
    assert {record.volume for record, _ in second_seen} == {second.slot}


def test_a_file_far_below_the_root_belongs_to_it(volume: Watched) -> None:
    seen = volume.run("deep", 300)
    assert volume.lines(seen)[-1].startswith("write a @0 b'deep'")
    assert volume.probe.lost().records == 0


def test_a_file_deeper_than_can_be_climbed_counts_as_lost_everywhere(tmp_path: Path) -> None:
    probe = bpf_probe.BpfProbe(4 * 1024 * 1024)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        probe.watch(1, fd)
        seen = Watched(probe, tmp_path, 1).run("deep", 1100)
        assert Kind.WRITE not in kinds(seen)
        assert probe.lost().records > 0
        assert probe.lost().everywhere
    finally:
        os.close(fd)
        probe.close()
        # Deeper than the clean-up of pytest can go.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_write_by_a_name_outside_is_told_by_its_inode(volume: Watched, outside: Path) -> None:
    seen = volume.run("linked", outside)
    record, _ = seen[-1]
    assert (record.kind, record.volume) == (Kind.REREAD, NO_VOLUME)
    assert record.inode == (volume.root / "a").stat().st_ino


def test_a_directory_that_moves_takes_its_open_files_along(volume: Watched, outside: Path) -> None:
    """A writer's file is remembered as being in the volume; a rename anywhere makes that void."""
    (volume.root / "d").mkdir()
    child = Watched(volume.probe, volume.root / "d", volume.slot).start("locked_pause")
    assert child.stdout is not None
    assert child.stdout.read(1) == b"!"
    os.rename(volume.root / "d", outside / "d")
    child.communicate(b".")
    volume.drain()
    told = [
        payload for record, payload in volume.seen if record.kind == Kind.WRITE and record.tgid == child.pid
    ]
    assert told == [b"before"]


def test_an_ignored_process_is_not_recorded(volume: Watched) -> None:
    child = volume.start("locked_pause")
    assert child.stdout is not None
    assert child.stdout.read(1) == b"!"
    volume.probe.ignore(child.pid)
    child.communicate(b".")
    volume.drain()
    told = [
        payload for record, payload in volume.seen if record.kind == Kind.WRITE and record.tgid == child.pid
    ]
    assert told == [b"before"]


def test_the_test_itself_can_be_ignored(volume: Watched) -> None:
    probe = bpf_probe.BpfProbe(64 * 1024)
    fd = os.open(volume.root, os.O_RDONLY)
    try:
        probe.watch(1, fd)
        probe.ignore(os.getpid())
        (volume.root / "mine").write_bytes(b"not for the record")
        assert Watched(probe, volume.root, 1).lines(Watched(probe, volume.root, 1).run("pages"))
        seen: list[int] = []
        probe.drain(lambda record, payload: seen.append(record.tgid))
        assert os.getpid() not in seen
    finally:
        os.close(fd)
        probe.close()
    volume.drain()
    assert os.getpid() in {record.tgid for record, _ in volume.seen}


def test_after_unwatch_nothing_is_recorded(probe: bpf_probe.BpfProbe, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    watched = Watched(probe, tmp_path, 77)
    probe.watch(77, fd)
    os.close(fd)
    assert kinds(watched.run("pages"))
    probe.unwatch(77)
    watched.seen.clear()
    (tmp_path / "a").unlink()
    assert watched.run("pages") == []


def test_a_directory_cannot_be_two_volumes(volume: Watched) -> None:
    fd = os.open(volume.root, os.O_RDONLY)
    try:
        with pytest.raises(errors.Refused, match="already captured"):
            volume.probe.watch(volume.slot + 1, fd)
    finally:
        os.close(fd)


def test_a_ring_of_an_odd_size_is_refused_with_a_remedy() -> None:
    with pytest.raises(errors.Misconfigured) as refusal:
        bpf_probe.BpfProbe(RING_BYTES + 1)
    assert "power of two" in refusal.value.hint
