"""The compiled loop and its twin: the same records give the same frames, whichever way they go."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from tests.support.memory_rings import BUSY, DISCARDED, PAGE, RING_BYTES, KernelSide
from tests.support.sinks import ListSink
from tests.unit.test_observer_machine import DATA, OFFSETS, PATHS, ProgramMachine

from diffkeeper.domain import deltas, errors, frames, limits, positions
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_capture import overlaps, records, write_lanes
from diffkeeper_capture.framer import Framer
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.records import HEAD, HEAD_BYTES, NO_VOLUME, Flag, Kind, Record
from diffkeeper_capture.ring import RingReader
from diffkeeper_capture.system_calls import call_name

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no compiled loop for this machine"
)


class HandClock:
    def unix_us(self) -> int:
        return 1_700_000_000_000_000

    def monotonic_us(self) -> int:
        return 5_000_000


class TwoVolumes:
    """Slots 1 and 2, each with its framer; every file but the odd ones is known. What the observer would do, in short."""

    def __init__(self, lanes: write_lanes.Lanes | None) -> None:
        self.framers = {slot: self._framer() for slot in (1, 2)}
        self.overlaps = {slot: overlaps.Overlaps() for slot in (1, 2)}
        self.taken: dict[int, list[frames.Frame]] = {1: [], 2: []}
        self.handled = 0
        self.lanes = {} if lanes is None else {slot: lanes.add(slot) for slot in (1, 2)}
        for slot, lane in self.lanes.items():
            self.framers[slot].use_lane(lane)
            self.overlaps[slot].use_lane(lane)

    def _framer(self) -> Framer:
        tip = frames.Tip(positions.Position(1, 1), bytes(32))
        return Framer(volume="v", origin="east", epoch=2, tip=tip, clock=HandClock())

    def handle(self, record: Record, payload: memoryview) -> None:
        self.handled += 1
        framer = self.framers.get(record.volume)
        if framer is None:
            return
        if record.kind != Kind.WRITE:
            args = (call_name(record.extra), record.tgid)
            framer.add(Delta(Op.BARRIER, record.inode + 100, args=args, at_us=record.end_ns // 1000))
            return
        if record.inode % 2 or record.flags & Flag.UNREADABLE:
            framer.gap("odd", str(record.inode))
            return
        framer.add_write(record.inode + 100, record.offset, payload, record.end_ns // 1000)
        self.overlaps[record.volume].note(record)
        if self.lanes and not record.flags:
            self.lanes[record.volume].learn(record.inode, record.generation, record.tgid, record.inode + 100)

    def cut(self) -> None:
        for slot, framer in self.framers.items():
            self.taken[slot] += framer.cut()


def body(record: Record, payload: bytes) -> bytes:
    return HEAD.pack(*record) + payload


def a_write(payload: bytes = b"x", **fields: int) -> bytes:
    plain = Record._make([Kind.WRITE, 0, 1, 9_000_000, 8_000_000, 7, 7, 4, 0, 1, 0, len(payload), *[0] * 8])
    return body(plain._replace(**fields), payload)


@st.composite
def ring_bodies(draw: st.DrawFn) -> tuple[bytes, int]:
    """A record as it stands in a ring, and the flags of its length."""
    payload = draw(st.one_of(st.binary(max_size=30), st.integers(0, 9_000).map(lambda size: b"p" * size)))
    kind = draw(st.sampled_from([Kind.WRITE] * 8 + [Kind.SYNC] * 3))
    if kind is Kind.SYNC and draw(st.integers(0, 9)):
        payload = b""
    made = a_write(
        payload,
        kind=kind,
        flags=draw(st.sampled_from([0, 0, 0, 0, Flag.APPEND, Flag.OVERLAPPED, Flag.UNREADABLE])),
        volume=draw(st.sampled_from([1, 1, 1, 2, 3, NO_VOLUME])),
        tgid=draw(st.integers(1, 3)),
        extra=draw(st.sampled_from([74, 75])),
        inode=draw(st.sampled_from([2, 4, 4, 6, 7])),
        generation=draw(st.integers(0, 1)),
        offset=draw(st.integers(0, limits.FILE_MAX_OFFSET - 10_000)),
        end_ns=draw(st.integers(1_000_000, 9_000_000_000)),
    )
    return made, draw(st.sampled_from([0, 0, 0, 0, 0, DISCARDED]))


@contextmanager
def ring() -> Iterator[tuple[KernelSide, RingReader]]:
    kernel = KernelSide()
    reader = RingReader(kernel.fd, RING_BYTES)
    try:
        yield kernel, reader
    finally:
        reader.close()
        kernel.close()


def lanes_here() -> write_lanes.Lanes:
    lanes = write_lanes.Lanes.load()
    assert lanes is not None, "python build_bpf.py makes it"
    return lanes


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(ring_bodies(), max_size=150),
    st.sampled_from([1, 3, 40, 65_536]),
    st.integers(0, 20),
    st.booleans(),
)
def test_frames_are_the_same_with_lanes_and_without(
    bodies: list[tuple[bytes, int]], most: int, cut_every: int, forgets: bool
) -> None:
    outcomes = []
    for lanes in (None, lanes_here()):
        volumes = TwoVolumes(lanes)
        with ring() as (kernel, reader):
            for number, (made, flags) in enumerate(bodies):
                if kernel.produced - kernel.consumer() + len(made) + 16 > RING_BYTES:
                    while reader.drain(volumes.handle, most=most, lanes=lanes):
                        pass
                kernel.put_body(made, flags)
                if cut_every and number % cut_every == 0:
                    reader.drain(volumes.handle, upto=kernel.produced, lanes=lanes)
                    volumes.cut()
                    if forgets and lanes is not None:
                        volumes.lanes[1].forget()
            while reader.drain(volumes.handle, most=most, lanes=lanes):
                pass
            assert kernel.consumer() == kernel.produced
        volumes.cut()
        outcomes.append({slot: [frame.wire for frame in run] for slot, run in volumes.taken.items()})
    assert outcomes[0] == outcomes[1]


def test_full_frames_are_cut_at_the_same_write_with_lanes_and_without() -> None:
    outcomes = []
    for lanes in (None, lanes_here()):
        volumes = TwoVolumes(lanes)
        with ring() as (kernel, reader):
            for number in range(700):
                kernel.put_body(a_write(os.urandom(1) * 9_001, offset=number, volume=1 + number % 2))
                reader.drain(volumes.handle, lanes=lanes)
        volumes.cut()
        outcomes.append([[frame.header.count for frame in run] for run in volumes.taken.values()])
        assert volumes.handled == 700 if lanes is None else volumes.handled < 120, "only what wraps around"
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) > 1


def test_a_write_is_plain_only_as_it_was_learned() -> None:
    """Another process, another generation, another file, a flag: each goes the long way once."""
    lanes = lanes_here()
    volumes = TwoVolumes(lanes)
    with ring() as (kernel, reader):

        def long_way(**fields: int) -> int:
            before = volumes.handled
            kernel.put_body(a_write(b"x", **fields))
            reader.drain(volumes.handle, lanes=lanes)
            return volumes.handled - before

        assert [long_way(), long_way()] == [1, 0]
        assert [long_way(tgid=8), long_way(tgid=8), long_way()] == [1, 0, 0]
        assert [long_way(generation=5), long_way(generation=5), long_way()] == [1, 0, 0]
        assert [long_way(inode=6), long_way(inode=6), long_way()] == [1, 0, 0]
        assert [long_way(volume=2), long_way(volume=2), long_way()] == [1, 0, 0]
        assert long_way(flags=Flag.OVERLAPPED) == long_way(flags=Flag.UNLINKED) == 1
        assert long_way(length=2) == 1, "a length that is not that of the payload"
        volumes.lanes[1].forget()
        assert [long_way(), long_way(), long_way(volume=2)] == [1, 0, 0]


def test_the_sync_of_a_known_file_by_a_known_process_is_a_mark_between_its_writes() -> None:
    lanes = lanes_here()
    volumes = TwoVolumes(lanes)
    with ring() as (kernel, reader):
        for number in range(6):
            kernel.put_body(a_write(b"%d" % number, offset=number))
            kernel.put_body(a_write(b"", kind=Kind.SYNC, extra=74 + number % 2))
            reader.drain(volumes.handle, lanes=lanes)
        assert volumes.handled == 1, "the write that is learned from"
        kernel.put_body(a_write(b"", kind=Kind.SYNC, inode=6))
        kernel.put_body(a_write(b"", kind=Kind.SYNC, tgid=8))
        reader.drain(volumes.handle, lanes=lanes)
        assert volumes.handled == 3, "another file, another process"
    volumes.cut()
    (frame,) = volumes.taken[1]
    made = list(frame.columns())
    assert [delta.op for delta in made] == [Op.WRITE, Op.BARRIER] * 6 + [Op.BARRIER] * 2
    assert [delta.data for delta in made[:12:2]] == [b"%d" % number for number in range(6)]
    assert [delta.args for delta in made[1:12:2]] == [("fsync", 7), ("fdatasync", 7)] * 3


def test_more_marks_than_a_lane_holds_are_all_in_the_log() -> None:
    lanes = lanes_here()
    volumes = TwoVolumes(lanes)
    count = 2 * write_lanes.MARKS_MAX + 5
    with ring() as (kernel, reader):
        kernel.put_body(a_write())
        reader.drain(volumes.handle, lanes=lanes)
        for first in range(0, count, 100):
            for _ in range(min(100, count - first)):
                kernel.put_body(a_write(b"", kind=Kind.SYNC, extra=74))
            reader.drain(volumes.handle, lanes=lanes)
    volumes.cut()
    ops = [delta.op for frame in volumes.taken[1] for delta in frame.columns()]
    assert ops == [Op.WRITE] + [Op.BARRIER] * count


def test_more_files_and_processes_than_the_tables_hold_are_learned_again() -> None:
    lanes = lanes_here()
    volumes = TwoVolumes(lanes)
    with ring() as (kernel, reader):
        for number in range(8_000):
            kernel.put_body(a_write(inode=2 * number, tgid=number % 400 + 1))
            reader.drain(volumes.handle, lanes=lanes)
        lane = volumes.lanes[1].state
        assert 0 < lane.files_known <= 3072
        assert 0 < lane.writers_known <= 192
        kernel.put_body(a_write(inode=2 * 7_999, tgid=7_999 % 400 + 1))
        before = volumes.handled
        reader.drain(volumes.handle, lanes=lanes)
        assert volumes.handled == before


def test_the_last_heads_are_remembered_for_overlaps_in_their_order() -> None:
    for count in (1, 5, overlaps.REMEMBERED, overlaps.REMEMBERED + 3, 3 * overlaps.REMEMBERED + 1):
        lanes = lanes_here()
        volumes = TwoVolumes(lanes)
        with ring() as (kernel, reader):
            for number in range(count + 1):
                kernel.put_body(a_write(bytes(16), offset=number))  # 128 bytes: none wraps around
                reader.drain(volumes.handle, lanes=lanes)
        heads = volumes.lanes[1].take_heads()
        offsets = list(range(1, count + 1))[-overlaps.REMEMBERED :]
        assert [head.offset for head in heads] == offsets
        assert volumes.lanes[1].take_heads() == []


def test_a_ring_that_claims_more_than_it_has_is_refused() -> None:
    with ring() as (kernel, reader):
        struct.pack_into("=Q", kernel.memory, PAGE, RING_BYTES + 8)
        with pytest.raises(errors.Corrupt) as caught:
            reader.drain(lambda record, payload: None, lanes=lanes_here())
        assert caught.value.reason == "ring-broken"


@given(st.integers(0, 2 * HEAD_BYTES), st.sampled_from([0, BUSY, DISCARDED]))
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_a_record_shorter_than_its_head_is_never_taken_for_a_write(length: int, flags: int) -> None:
    lanes = lanes_here()
    lane = lanes.add(0)
    lane.learn(0, 0, 1, 9)
    with ring() as (kernel, reader):
        kernel.put_body(bytes(length), flags)
        quick = write_lanes.Ring(
            data=ctypes.addressof(ctypes.c_char.from_buffer(kernel.memory)) + 2 * PAGE,
            bytes=RING_BYTES,
            consumer=ctypes.addressof(ctypes.c_char.from_buffer(kernel.memory)),
            stride=4096,
        )
        taken, goes_on = lanes.take(quick, kernel.produced, 10)
        assert (taken, lane.count) == (0, 0)
        assert goes_on == (flags == 0)
        del quick
        reader.consumed()


def test_c_structures_have_the_sizes_of_their_twins() -> None:
    source = (write_lanes.FOLDER / "write_lanes.c").read_text()
    for name, twin in (("lane", write_lanes._Lane), ("ring", write_lanes.Ring)):
        text = source.split(f"struct {name} {{")[1].split("};")[0]
        names = [line.split(";")[0].split()[-1].lstrip("*") for line in text.splitlines() if ";" in line]
        assert names == [field[0] for field in twin._fields_], name
    record = source.split("struct record {")[1].split("};")[0]
    assert [line.split(";")[0].split()[-1] for line in record.splitlines() if ";" in line] == list(
        records.Record._fields
    )


class LaneSink(ListSink):
    """Takes what waits in a lane before anything else, as a framer does."""

    def __init__(self) -> None:
        self.lane: write_lanes.Lane | None = None
        self._deltas: list[Delta] = []
        super().__init__()

    @property
    def deltas(self) -> list[Delta]:
        if self.lane is not None and self.lane.count:
            columns = deltas.Columns()
            self.lane.pour(columns, 0)
            self._deltas += list(columns)
        return self._deltas

    @deltas.setter
    def deltas(self, value: list[Delta]) -> None:
        self._deltas = value


class LanesMachine(ProgramMachine):
    """The same random programs, their records through a ring with a lane."""

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.observer.close()
        self.kernel = KernelSide()
        self.reader = RingReader(self.kernel.fd, RING_BYTES)
        self.lanes = lanes_here()
        self.sink = LaneSink()
        self.observer = Observer(self.root, self.sink)
        for _ in self.observer.scan_base():
            pass
        self.settle()
        self.settle()
        self.sink.fidelity = frames.Fidelity.EXACT
        lane = self.lanes.add(0)
        self.observer.use_lane(lane)
        self.sink.lane = lane

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "reader"):
            self.reader.close()
            self.kernel.close()

    @rule(path=PATHS, offsets=st.lists(OFFSETS, min_size=2, max_size=5), data=DATA)
    def write_often(self, path: str, offsets: list[int], data: bytes) -> None:
        for number, offset in enumerate(offsets):
            self.attempt(lambda at=offset, text=data + b"%d" % number: self.program.write(path, at, text))

    def observe(self, record: Record, payload: memoryview) -> None:
        self.kernel.put_body(body(record, bytes(payload)))
        self.reader.drain(super().observe, lanes=self.lanes)


TestLanesMachine = LanesMachine.TestCase
TestLanesMachine.settings = settings(
    max_examples=int(os.environ.get("DK_MACHINE_EXAMPLES", "25")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_a_drain_leaves_nothing_behind_in_time() -> None:
    """Writes that wait in a lane count as pending, so that the frame they belong to becomes due."""
    lanes = lanes_here()
    volumes = TwoVolumes(lanes)
    with ring() as (kernel, reader):
        for _ in range(3):
            kernel.put_body(a_write(end_ns=time.monotonic_ns()))
            reader.drain(volumes.handle, lanes=lanes)
    assert volumes.framers[1].pending == 3
    assert volumes.framers[1].pending_bytes > 3
