"""Writes of many records, of many segments, and those whose bytes cannot be had."""

from __future__ import annotations

import os

import pytest
from tests.bpf import acts
from tests.bpf.recording import Seen, Watched

from diffkeeper_capture import records
from diffkeeper_capture.records import NO_VOLUME, Flag, Kind

pytestmark = pytest.mark.bpf


def writes(seen: list[Seen]) -> list[Seen]:
    return [pair for pair in seen if pair[0].kind == Kind.WRITE]


@pytest.mark.parametrize("size", [records.PAYLOAD_MAX_BYTES, records.PAYLOAD_MAX_BYTES + 1, 5_000_000])
def test_a_large_write_is_several_records_of_which_the_last_is_not_partial(
    size: int, volume: Watched
) -> None:
    found = writes(volume.run("large", size))
    assert b"".join(payload for _, payload in found) == acts.pattern(size)
    at = 0
    for record, payload in found:
        assert (record.offset, record.length, record.aux) == (at, len(payload), size)
        assert len(payload) <= records.PAYLOAD_MAX_BYTES
        assert not record.flags & Flag.OVERLAPPED
        at += len(payload)
    assert [bool(record.flags & Flag.PARTIAL) for record, _ in found] == [True] * (len(found) - 1) + [False]


def test_a_write_beyond_the_limit_is_one_range_to_read_again(volume: Watched) -> None:
    size = records.COPY_MAX_BYTES + 1
    [(record, payload)] = writes(volume.run("large", size))
    assert (record.offset, record.length, payload) == (0, size, b"")
    assert Flag(record.flags) & ~Flag.OVERLAPPED == Flag.UNREADABLE, "somebody may cut a file by its path"


@pytest.mark.parametrize(("count", "seed"), [(3, 1), (1000, 2), (1024, 3), (1024, 4)])
def test_a_vectored_write_of_many_segments_is_put_together(count: int, seed: int, volume: Watched) -> None:
    found = writes(volume.run("many_segments", count, seed))
    *parts, (last, tail) = found
    together = b"".join(payload for _, payload in parts)
    assert together == acts.pattern(1 << 20)[: len(together)]
    assert [record.offset for record, _ in parts] == [
        10 + index * records.PAYLOAD_MAX_BYTES for index in range(len(parts))
    ]
    assert (volume.root / "a").stat().st_size == 10 + len(together)
    assert (last.offset, tail) == (0, b"smaller")


def test_a_buffer_taken_away_before_the_call_returns_makes_a_range_to_read_again(volume: Watched) -> None:
    [(record, payload)] = writes(volume.run("buffer_gone"))
    assert payload == b""
    assert Flag(record.flags) & ~Flag.OVERLAPPED == Flag.UNREADABLE | Flag.SYNCHRONOUS
    assert (record.offset, record.length) == (0, acts.SLOW_SYNC_BYTES)


def test_a_descriptor_replaced_before_the_call_returns_is_told_by_its_inode(volume: Watched) -> None:
    seen = volume.run("descriptor_gone")
    told = [record for record, _ in seen if record.volume == NO_VOLUME]
    assert [(record.kind, record.inode) for record in told] == [
        (Kind.REREAD, os.stat(volume.root / "a").st_ino)
    ]
    assert not writes(seen), "the bytes went to the file that is no longer there"
