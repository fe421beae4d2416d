"""What the spool keeps, through torn tails, damage, full disks and failing fsyncs."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import framing

from diffkeeper.domain import errors, frames, positions
from diffkeeper_capture import spool as spools
from diffkeeper_capture import spool_records, syncers

START = positions.START
FRAMES = list(framing.chain(12, size=200))
RECORD_BYTES = [spool_records.HEAD_BYTES + len(frame.wire) for frame in FRAMES]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def reopened(directory: Path) -> Iterator[spools.Spool]:
    spool = spools.Spool.open(directory)
    try:
        yield spool
    finally:
        spool.close()


def kept(directory: Path) -> list[bytes]:
    """What a restarted agent finds."""
    for spool in reopened(directory):
        return [frame.wire for frame in spool.frames_after(START)]
    raise AssertionError


def fill(directory: Path, count: int, synced: int = 0, segment_bytes: int = spools.SEGMENT_BYTES) -> None:
    """``count`` frames, the first ``synced`` of them durable, then the process is gone."""
    spool = spools.Spool.open(directory, segment_bytes=segment_bytes)
    for number, frame in enumerate(FRAMES[:count], 1):
        spool.append(frame)
        if number == synced:
            asyncio.run(spool.sync())
    spool.close()


def wires(count: int) -> list[bytes]:
    return [frame.wire for frame in FRAMES[:count]]


def test_a_new_spool_is_empty(directory: Path) -> None:
    for spool in reopened(directory):
        assert (spool.first, spool.last, spool.durable, spool.bytes_kept) == (None, None, None, 0)
        assert list(spool.frames_after(START)) == []


def test_frames_come_back_in_order_after_a_restart(directory: Path) -> None:
    fill(directory, 12, segment_bytes=1000)
    assert len(list(directory.glob("*.spool"))) > 2
    for spool in reopened(directory):
        assert (spool.first, spool.last, spool.durable) == (
            FRAMES[0].position,
            FRAMES[-1].position,
            FRAMES[-1].position,
        )
        assert [frame.wire for frame in spool.frames_after(FRAMES[4].position)] == wires(12)[5:]
        assert spool.find(FRAMES[7].position) == FRAMES[7]
        assert spool.find(positions.Position(1, 99)) is None
        assert spool.bytes_after(FRAMES[8].position) == sum(RECORD_BYTES[9:])
        assert spool.bytes_after(FRAMES[11].position) == 0


@pytest.mark.parametrize("segment_bytes", [700, spools.SEGMENT_BYTES])
def test_the_last_record_torn_at_each_byte_is_cut_and_the_rest_kept(
    tmp_path: Path, segment_bytes: int
) -> None:
    whole = tmp_path / "whole"
    fill(whole, 5, segment_bytes=segment_bytes)
    newest = sorted(whole.glob("*.spool"))[-1].name
    size = (whole / newest).stat().st_size
    for lost in range(1, RECORD_BYTES[4] + 1):
        torn = tmp_path / "torn"
        shutil.copytree(whole, torn)
        os.truncate(torn / newest, size - lost)
        assert kept(torn) == wires(4)
        assert lost % 32 or kept(torn) == wires(4), "the cut is durable"
        shutil.rmtree(torn)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    synced=st.integers(0, 8),
    at=st.integers(0, sum(RECORD_BYTES[:8]) - 1),
    length=st.integers(1, 400),
    seed=st.randoms(use_true_random=False),
    segment_bytes=st.sampled_from([700, 1500, spools.SEGMENT_BYTES]),
)
def test_garbage_anywhere_is_a_torn_tail_only_where_nothing_had_been_synced(
    tmp_path: Path, synced: int, at: int, length: int, seed: object, segment_bytes: int
) -> None:
    """A power cut may leave any garbage behind what was synced; garbage before it is damage,
    and both are told apart.
    """
    directory = tmp_path / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    fill(directory, 8, synced, segment_bytes)
    broken = overwrite(directory, at, length)
    intact = next(n for n in range(8) if sum(RECORD_BYTES[: n + 1]) > at)
    # A record can only prove what was synced when a record behind the damage still says so.
    proven = any(synced > intact and number >= synced for number in range(8) if number not in broken)
    if proven:
        before = snapshot(directory)
        with pytest.raises(errors.Corrupt) as caught:
            spools.Spool.open(directory)
        assert caught.value.reason == "spool-damaged"
        assert snapshot(directory) == before, "nothing was changed"
    else:
        assert kept(directory) == wires(intact)


def overwrite(directory: Path, at: int, length: int) -> set[int]:
    """Flip ``length`` bytes from offset ``at`` of the spool; the numbers of the records that were hit."""
    for path in sorted(directory.glob("*.spool")):
        base, data = int(path.stem, 16), bytearray(path.read_bytes())
        for offset in range(max(at, base), min(at + length, base + len(data))):
            data[offset - base] ^= 0xA5
        path.write_bytes(data)
    ends = [sum(RECORD_BYTES[: number + 1]) for number in range(8)]
    return {
        number
        for number in range(8)
        if ends[number] > at and ends[number] - RECORD_BYTES[number] < at + length
    }


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.spool")}


def test_appending_goes_on_behind_a_cut(directory: Path) -> None:
    fill(directory, 5)
    (segment,) = directory.glob("*.spool")
    os.truncate(segment, segment.stat().st_size - 3)
    for spool in reopened(directory):
        for frame in FRAMES[4:8]:
            spool.append(frame)
    assert kept(directory) == wires(8)


def test_a_whole_record_of_an_unknown_format_is_never_cut(directory: Path) -> None:
    fill(directory, 2)
    alien = b"DKF9" + FRAMES[2].wire[4:]
    (segment,) = directory.glob("*.spool")
    with segment.open("ab") as file:
        file.write(spool_records.head(alien, blake3(alien).digest(), 0) + alien)
    before = snapshot(directory)
    with pytest.raises(errors.Corrupt) as caught:
        spools.Spool.open(directory)
    assert caught.value.reason == "unknown-format"
    assert snapshot(directory) == before


@pytest.mark.parametrize("make_syncer", [syncers.ExecutorSyncer, syncers.best])
async def test_sync_makes_durable_what_was_appended_before_it(
    directory: Path, make_syncer: Callable[[], syncers.Syncer]
) -> None:
    spool = spools.Spool.open(directory, make_syncer=make_syncer)
    spool.append(FRAMES[0])
    assert spool.durable is None
    assert await spool.sync() == FRAMES[0].position
    spool.append(FRAMES[1])
    assert spool.durable == FRAMES[0].position
    spool.close()


async def test_many_waiters_share_an_fsync_and_each_is_covered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    really = os.fdatasync

    def counting(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        really(descriptor)

    monkeypatch.setattr(os, "fdatasync", counting)
    spool = spools.Spool.open(directory)

    async def write_and_wait(frame: frames.Frame) -> None:
        spool.append(frame)
        durable = await spool.sync()
        assert durable is not None and durable >= frame.position

    await asyncio.gather(*(write_and_wait(frame) for frame in FRAMES))
    assert 1 <= calls <= 3
    spool.close()


@pytest.mark.parametrize("make_syncer", [syncers.ExecutorSyncer, syncers.best])
async def test_a_sync_that_nobody_waits_for_has_all_of_what_was_appended_meanwhile(
    directory: Path, make_syncer: Callable[[], syncers.Syncer]
) -> None:
    spool = spools.Spool.open(directory, make_syncer=make_syncer)
    told: list[object] = []
    all_is_durable = asyncio.Event()

    def synced() -> None:
        told.append(spool.durable)
        if spool.durable == FRAMES[2].position:
            all_is_durable.set()

    spool.on_synced = synced
    for frame in FRAMES[:3]:
        spool.append(frame)
        spool.sync_soon()
    async with asyncio.timeout(60):
        await all_is_durable.wait()
    assert told == [FRAMES[0].position, FRAMES[2].position]
    spool.sync_soon()  # of nothing new
    assert await spool.sync() == FRAMES[2].position
    assert len(told) == 2
    spool.close()


@pytest.mark.parametrize("make_syncer", [syncers.ExecutorSyncer, syncers.best])
async def test_a_spool_may_be_closed_while_it_syncs(
    directory: Path, make_syncer: Callable[[], syncers.Syncer]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for frame in FRAMES[:3]:
        spool = spools.Spool.open(directory, make_syncer=make_syncer)
        spool.append(frame)
        spool.sync_soon()
        spool.close()
    for again in reopened(directory):
        assert again.last == FRAMES[2].position
    async with asyncio.timeout(60):
        # The thread closes its own ends in its own time.
        while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_cancelled_waiter_does_not_take_the_fsync_from_the_others(directory: Path) -> None:
    spool = spools.Spool.open(directory)
    spool.append(FRAMES[0])
    impatient, patient = asyncio.create_task(spool.sync()), asyncio.create_task(spool.sync())
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == FRAMES[0].position
    spool.close()


async def test_a_failed_fsync_ends_all_receipts_until_the_spool_is_opened_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spools.Spool.open(directory)
    spool.append(FRAMES[0])
    await spool.sync()
    spool.append(FRAMES[1])
    failures = iter([OSError(errno.EIO, "Input/output error")])

    def failing_once(descriptor: int) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(os, "fdatasync", failing_once)
    for _ in range(2):
        with pytest.raises(errors.Corrupt) as caught:
            await spool.sync()
        assert caught.value.reason == "spool-poisoned"
    with pytest.raises(errors.Corrupt):
        spool.append(FRAMES[2])
    assert spool.durable == FRAMES[0].position
    spool.close()
    for again in reopened(directory):
        assert again.durable == FRAMES[1].position, "verified from the disk, so durable now"


def test_release_drops_whole_confirmed_segments_and_never_the_newest(directory: Path) -> None:
    spool = spools.Spool.open(directory, segment_bytes=2 * RECORD_BYTES[0] + 10)
    for frame in FRAMES:
        spool.append(frame)
    spool.release(FRAMES[2].position)
    assert spool.first == FRAMES[2].position
    spool.release(FRAMES[-1].position)
    assert (spool.first, spool.last) == (FRAMES[10].position, FRAMES[11].position)
    assert [frame.wire for frame in spool.frames_after(START)] == wires(12)[10:]
    spool.close()
    assert kept(directory) == wires(12)[10:]


def test_a_full_spool_takes_nothing_until_something_was_released(directory: Path) -> None:
    spool = spools.Spool.open(
        directory, max_bytes=sum(RECORD_BYTES[:4]) + 10, segment_bytes=RECORD_BYTES[0] + 10
    )
    for frame in FRAMES[:4]:
        spool.append(frame)
    with pytest.raises(errors.Transient) as caught:
        spool.append(FRAMES[4])
    assert caught.value.reason == "spool-full"
    assert spool.last == FRAMES[3].position
    spool.release(FRAMES[0].position)
    spool.append(FRAMES[4])
    spool.close()
    assert kept(directory) == wires(5)[1:]


def test_batches_read_back_stay_near_the_size_asked_for(directory: Path) -> None:
    fill(directory, 12, segment_bytes=1000)
    for spool in reopened(directory):
        for size in (1, 500, 1200, 10_000):
            at, taken = START, []
            while places := spool.places_after(at, size):
                batch = spool.load(places)
                assert sum(len(frame.wire) for frame in batch) <= size + max(RECORD_BYTES)
                taken += [frame.wire for frame in batch]
                at = batch[-1].position
            assert taken == wires(12)


def test_damage_found_while_reading_back_is_told(directory: Path) -> None:
    spool = spools.Spool.open(directory)
    for frame in FRAMES[:3]:
        spool.append(frame)
    overwrite(directory, RECORD_BYTES[0] + 40, 1)
    with pytest.raises(errors.Corrupt) as caught:
        list(spool.frames_after(START))
    assert caught.value.reason == "spool-damaged"
    spool.close()


def test_two_processes_cannot_have_the_same_spool(directory: Path) -> None:
    spool = spools.Spool.open(directory)
    with pytest.raises(errors.Refused) as caught:
        spools.Spool.open(directory)
    assert caught.value.reason == "spool-busy"
    spool.close()


def test_positions_order_across_epochs(directory: Path) -> None:
    tip = frames.Tip(FRAMES[1].position, FRAMES[1].hash)
    later = list(framing.chain(2, epoch=3, parent=tip))
    spool = spools.Spool.open(directory)
    for frame in [*FRAMES[:4], *later]:
        spool.append(frame)
    assert list(spool.frames_after(positions.Position(3, 0))) == later
    assert spool.find(FRAMES[3].position) == FRAMES[3]
    spool.close()
