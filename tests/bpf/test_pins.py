"""What is pinned belongs to somebody, or goes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tests.support import power

from diffkeeper import pins
from diffkeeper.domain import errors
from diffkeeper_capture import bpf_probe

MIB = 1024 * 1024
why_not = bpf_probe.BpfProbe.why_not()
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not))


def agent_directory(base: Path, *, last_sign_s: float) -> Path:
    """Of an agent that was killed so long ago; what it had pinned is there."""
    directory = base / "agent with a blank"
    directory.mkdir()
    ownership = pins.Ownership.take(directory)
    bpf_probe.BpfProbe(MIB, pins=pins.prepare(directory), owner=directory).close()
    ownership.release()
    at = time.time() - last_sign_s
    os.utime(directory / pins.LOCK, (at, at))
    return directory


def test_a_successor_takes_over_the_ring_and_the_roots(tmp_path: Path) -> None:
    directory = agent_directory(tmp_path, last_sign_s=1)
    root = os.open(tmp_path, os.O_RDONLY)
    first = bpf_probe.BpfProbe(MIB, pins=pins.prepare(directory), owner=directory)
    first.watch(3, root)
    first.close()
    (tmp_path / "while nobody lived").write_text("seen all the same")
    second = bpf_probe.BpfProbe(MIB, pins=pins.prepare(directory), owner=directory)
    assert (second.identity, second.unclaimed) == (first.identity, frozenset({3}))
    assert second.is_watched_as(3, root)
    payloads: list[bytes] = []
    second.drain(lambda _record, payload: payloads.append(bytes(payload)), upto=second.produced())
    assert b"seen all the same" in payloads
    second.close()
    other_ring = bpf_probe.BpfProbe(2 * MIB, pins=pins.prepare(directory), owner=directory)
    assert other_ring.identity != first.identity, "another ring is another one's"
    other_ring.close()
    os.close(root)
    assert pins.remove(directory)


def test_orphans_go_and_those_who_may_come_back_stay(tmp_path: Path) -> None:
    directory = agent_directory(tmp_path, last_sign_s=pins.ORPHANED_S - 60)
    pins.remove_orphans()
    assert directory in pins.owners()
    os.utime(directory / pins.LOCK, (0, 0))
    living = pins.Ownership.take(directory)
    os.utime(directory / pins.LOCK, (0, 0))
    pins.remove_orphans()
    assert directory in pins.owners(), "its owner lives, however silent"
    living.release()
    assert pins.remove_orphans() == [directory]
    assert directory not in pins.owners()


def test_a_mount_whose_agent_was_deleted_with_its_pins_goes(tmp_path: Path) -> None:
    directory = agent_directory(tmp_path, last_sign_s=1)
    if not os.path.ismount(directory / pins.OWN_MOUNT):
        pytest.skip("pins go to the machine's own BPF file system here")
    shutil.rmtree(directory, ignore_errors=True)
    assert os.path.ismount(directory / pins.OWN_MOUNT)
    pins.remove_orphans()
    assert not os.path.ismount(directory / pins.OWN_MOUNT)


def test_an_agent_whose_disk_fails_keeps_no_other_from_tidying_up(tmp_path: Path) -> None:
    with power.disk(tmp_path, "broken") as disk:
        directory = agent_directory(disk.mount, last_sign_s=10 * pins.ORPHANED_S)
        disk.cut()
        assert directory not in pins.remove_orphans()


def test_a_directory_has_one_agent(tmp_path: Path) -> None:
    first = pins.Ownership.take(tmp_path)
    with pytest.raises(errors.Misconfigured) as caught:
        pins.Ownership.take(tmp_path)
    assert caught.value.reason == "agent-running"
    first.release()
    pins.Ownership.take(tmp_path).release()
