"""Reading the ring: against a memory file laid out as the kernel lays out its ring, filled by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.support.memory_rings import BUSY, DISCARDED, RING_BYTES, KernelSide

from diffkeeper_capture import records
from diffkeeper_capture.ring import RingReader


@pytest.fixture
def kernel() -> Iterator[KernelSide]:
    side = KernelSide()
    yield side
    side.close()


@pytest.fixture
def reader(kernel: KernelSide) -> Iterator[RingReader]:
    opened = RingReader(kernel.fd, RING_BYTES)
    yield opened
    opened.close()


def drained(reader: RingReader, upto: int | None = None, most: int = 65_536) -> list[bytes]:
    found: list[bytes] = []
    count = reader.drain(lambda record, payload: found.append(bytes(payload)), upto, most)
    assert count == len(found)
    return found


def test_records_come_in_order_and_the_kernel_learns_our_position(
    kernel: KernelSide, reader: RingReader
) -> None:
    for text in (b"one", b"", b"three three"):
        kernel.put(text)
    assert drained(reader) == [b"one", b"", b"three three"]
    assert kernel.consumer() == reader.produced() == reader.consumed()
    assert drained(reader) == []


def test_a_record_that_wraps_around_is_read_whole(kernel: KernelSide, reader: RingReader) -> None:
    for round_ in range(40):
        payload = bytes([round_]) * 10_001
        kernel.put(payload)
        assert drained(reader) == [payload]
    assert kernel.produced > 5 * RING_BYTES


def test_discarded_records_are_passed_over(kernel: KernelSide, reader: RingReader) -> None:
    kernel.put(b"a")
    kernel.put(b"not this", DISCARDED)
    kernel.put(b"b")
    assert drained(reader) == [b"a", b"b"]


def test_an_unfinished_record_stops_the_reading_until_it_is_finished(
    kernel: KernelSide, reader: RingReader
) -> None:
    kernel.put(b"a")
    begin = kernel.put(b"slow", BUSY)
    kernel.put(b"after")
    assert drained(reader) == [b"a"]
    kernel.finish(begin, records.HEAD_BYTES + 4)
    assert drained(reader) == [b"slow", b"after"]


def test_a_target_is_reached_even_past_an_unfinished_record(kernel: KernelSide, reader: RingReader) -> None:
    begin = kernel.put(b"slow", BUSY)
    target = kernel.produced
    finisher = threading.Timer(0.05, kernel.finish, (begin, records.HEAD_BYTES + 4))
    finisher.start()
    try:
        assert drained(reader, upto=target) == [b"slow"]
    finally:
        finisher.join()


def test_most_limits_a_drain_but_never_below_the_target(kernel: KernelSide, reader: RingReader) -> None:
    for number in range(10):
        kernel.put(b"%d" % number)
        if number == 5:
            target = kernel.produced
    assert len(drained(reader, most=2)) == 2
    assert len(drained(reader, upto=target, most=2)) == 4
    assert len(drained(reader)) == 4


def test_a_record_whose_handler_raises_is_delivered_again(kernel: KernelSide, reader: RingReader) -> None:
    kernel.put(b"a")
    kernel.put(b"b")
    seen: list[bytes] = []

    def handle(record: records.Record, payload: memoryview) -> None:
        if bytes(payload) == b"b" and not seen.count(b"a") > 1:
            seen.append(b"a")
            raise ZeroDivisionError
        seen.append(bytes(payload))

    with pytest.raises(ZeroDivisionError):
        reader.drain(handle)
    assert drained(reader) == [b"b"]


def test_a_long_drain_frees_room_on_the_way(kernel: KernelSide, reader: RingReader) -> None:
    """The kernel gets room back before the drain ends, else a slow handler would let the ring run full."""
    for _ in range(6):
        kernel.put(bytes(9_000))
    free_up_to: list[int] = []
    assert reader.drain(lambda record, payload: free_up_to.append(kernel.consumer())) == 6
    assert free_up_to[0] == 0
    assert free_up_to[-1] >= kernel.produced // 2
