"""The ring when it is too small, when it wraps around, and when one waits for it."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from tests.bpf import acts
from tests.bpf.conftest import skip_without_rights
from tests.bpf.recording import Watched

from diffkeeper_capture import bpf_probe
from diffkeeper_capture.records import Kind, Record

pytestmark = pytest.mark.bpf

SMALL_RING_BYTES = 4 * 1024 * 1024
GIBIBYTE = 1 << 30


@pytest.fixture
def small(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A volume with a probe and a small ring of its own."""
    skip_without_rights()
    root = tmp_path / "volume"
    root.mkdir()
    probe = bpf_probe.BpfProbe(SMALL_RING_BYTES)
    fd = os.open(root, os.O_RDONLY)
    probe.watch(5, fd)
    os.close(fd)
    yield Watched(probe, root, 5)
    probe.close()


def test_what_had_no_room_is_counted_and_its_files_are_named(small: Watched) -> None:
    count = 3 * SMALL_RING_BYTES // 1000
    child = small.start("flood", count)
    _, complaint = child.communicate()
    assert child.returncode == 0, complaint.decode()
    small.drain()
    lost = small.probe.lost()
    kept = [record for record, _ in small.seen if record.kind == Kind.WRITE]
    # Naming calls of other processes of the machine may be lost as well, and then count as lost everywhere.
    assert len(kept) < count // 2
    assert len(kept) + lost.records >= count
    assert lost.everywhere or len(kept) + lost.records == count
    assert lost.files == {(5, (small.root / "a").stat().st_ino)}
    assert [record.offset for record in kept] == [index * 1000 for index in range(len(kept))]


def test_after_an_overflow_records_come_again(small: Watched) -> None:
    small.start("flood", 2 * SMALL_RING_BYTES // 1000).communicate()
    small.drain()
    before = small.probe.lost()
    small.seen.clear()
    seen = small.run("pages")
    assert len(seen) == 3
    assert small.probe.lost() == before


def test_a_lost_naming_call_counts_as_lost_everywhere(small: Watched) -> None:
    small.start("flood", 2 * SMALL_RING_BYTES // 1000).communicate()
    small.start("names").communicate()
    assert small.probe.lost().everywhere


def test_a_gibibyte_through_a_small_ring_loses_nothing(small: Watched) -> None:
    steps = GIBIBYTE // acts.STEP_BYTES
    data = acts.pattern(acts.STEP_BYTES + 4096)
    checked = 0

    def check(record: Record, payload: memoryview) -> None:
        nonlocal checked
        if record.kind != Kind.WRITE:
            return
        shift = checked % 4096
        assert record.offset == checked % 64 * acts.STEP_BYTES
        assert payload == data[shift : shift + acts.STEP_BYTES]
        checked += 1

    child = small.start("stream", steps)
    assert child.stdin is not None
    for allowed in range(acts.STEPS_AT_A_TIME, steps + 1, acts.STEPS_AT_A_TIME):
        child.stdin.write(b".")
        child.stdin.flush()
        while checked < allowed:
            wait_readable(small)
            small.probe.drain(check)
    _, complaint = child.communicate()
    assert child.returncode == 0, complaint.decode()
    assert checked == steps
    assert small.probe.lost().records == 0
    assert small.probe.produced() > GIBIBYTE


def test_the_descriptor_is_readable_while_records_wait(small: Watched) -> None:
    small.drain()
    (small.root / "a").write_bytes(b"x")
    wait_readable(small)
    small.drain()
    assert not select.select([small.probe.fileno()], [], [], 0)[0]


def test_a_handler_that_fails_loses_no_record(small: Watched) -> None:
    small.start("pages").communicate()
    texts: list[int] = []

    def handle(record: Record, payload: memoryview) -> None:
        if record.volume != small.slot:
            return
        if record.length == 8192 and 8192 not in texts:
            texts.append(8192)
            raise ZeroDivisionError
        texts.append(record.length)

    with pytest.raises(ZeroDivisionError):
        small.probe.drain(handle)
    small.probe.drain(handle)
    assert texts == [1, 4096, 8192, 8192, 4097]


def wait_readable(small: Watched) -> None:
    poll = select.epoll()
    try:
        poll.register(small.probe.fileno(), select.EPOLLIN)
        assert poll.poll(20), "the ring never became readable"
    finally:
        poll.close()
