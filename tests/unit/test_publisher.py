"""The publisher against the memory log: what it does when the stream is elsewhere than it thought."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.support import framing

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper.log import event_log, memory_event_log
from diffkeeper_capture import publisher as publishers
from diffkeeper_capture import spool as spools

ORIGIN = framing.ORIGIN


class World:
    """One site's broker, spool and log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broker = memory_event_log.MemoryBroker()
        self.log = memory_event_log.MemoryEventLog(self.broker, "east")
        self.spool = spools.Spool.open(directory)

    def publisher(
        self, epoch: int = 1, parent: frames.Tip = frames.ORIGIN_TIP, window: publishers.Window | None = None
    ) -> publishers.Publisher:
        return publishers.Publisher(
            self.log, ORIGIN, self.spool, epoch=epoch, parent=parent, window=window or publishers.Window()
        )

    @property
    def stream(self) -> list[bytes | None]:
        return self.broker.streams["east", ORIGIN].messages

    def lose(self, count: int) -> None:
        """The broker's disk loses the last ``count`` messages it had acknowledged."""
        stream = self.broker.streams["east", ORIGIN]
        kept = len(stream.messages) - count
        del stream.messages[kept:], stream.ids[kept:]
        self.broker.changed()

    def restart_spool(self, segment_bytes: int = spools.SEGMENT_BYTES) -> None:
        self.spool.close()
        self.spool = spools.Spool.open(self.directory, segment_bytes=segment_bytes)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "spool")
    await made.log.create_origin(ORIGIN)
    yield made
    made.spool.close()


@contextlib.asynccontextmanager
async def running(publisher: publishers.Publisher) -> AsyncIterator[publishers.Publisher]:
    await publisher.recover()
    task = asyncio.create_task(publisher.run())
    try:
        async with asyncio.timeout(10):
            yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def offer(world: World, publisher: publishers.Publisher, sent: list[frames.Frame]) -> None:
    for frame in sent:
        world.spool.append(frame)
        publisher.offer(frame)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  the publisher has no event for this
            await asyncio.sleep(0.005)


def wires(sent: list[frames.Frame]) -> list[bytes]:
    return [frame.wire for frame in sent]


def tip_of(frame: frames.Frame) -> frames.Tip:
    return frames.Tip(frame.position, frame.hash)


async def test_frames_offered_are_stored_in_order_and_waiters_are_told(world: World) -> None:
    sent = list(framing.chain(100))
    told: list[positions.Position] = []
    publisher = publishers.Publisher(
        world.log, ORIGIN, world.spool, epoch=1, parent=frames.ORIGIN_TIP, on_stored=told.append
    )
    async with running(publisher):
        assert publisher.stored is None
        offer(world, publisher, sent)
        assert publisher.behind_bytes > 0
        await publisher.wait_stored(sent[49].position)
        await publisher.wait_stored(sent[-1].position)
        await publisher.wait_stored(sent[0].position)
    assert world.stream == wires(sent)
    assert told == [frame.position for frame in sent]
    assert publisher.behind_bytes == 0
    assert publisher.counters.published == 100
    assert publisher.counters.resent == 0


async def test_a_frame_offered_to_a_publisher_at_rest_is_sent_before_the_offer_returns(world: World) -> None:
    sent = list(framing.chain(3))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent[:1])
        await publisher.wait_stored(sent[0].position)
        for number in (1, 2):
            offer(world, publisher, sent[number : number + 1])
            assert publisher.in_flight == 1 and world.stream == wires(sent[: number + 1])
            await publisher.wait_stored(sent[number].position)
            assert publisher.in_flight == 0


async def test_what_does_not_fit_into_the_window_is_read_back_from_the_spool(world: World) -> None:
    sent = list(framing.chain(300, size=500))
    publisher = world.publisher(window=publishers.Window(frames=5, bytes=3000, ready_bytes=3000))
    async with running(publisher):
        offer(world, publisher, sent)
        assert len(publisher._ready) < 10, "memory is bounded by the window"
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)


async def test_a_broker_that_is_down_is_waited_for(world: World) -> None:
    sent = list(framing.chain(20))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent[:10])
        await publisher.wait_stored(sent[9].position)
        world.broker.down.add("east")
        offer(world, publisher, sent[10:])
        await until(lambda: publisher.trouble is not None)
        assert isinstance(publisher.trouble, errors.Unreachable)
        world.broker.down.clear()
        await publisher.wait_stored(sent[-1].position)
        assert publisher.trouble is None
    assert world.stream == wires(sent)


async def test_a_full_broker_is_waited_for(world: World) -> None:
    sent = list(framing.chain(20))
    world.broker.max_bytes["east"] = 5 * len(sent[0].wire) + 50
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent)
        await until(lambda: publisher.trouble is not None and publisher.trouble.reason == "log-full")
        assert 0 < len(world.stream) < 10
        world.broker.max_bytes.clear()
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)


@pytest.mark.parametrize("lost", [1, 3, 10])
async def test_a_stream_that_lost_its_tail_is_filled_again_from_the_spool(world: World, lost: int) -> None:
    sent = list(framing.chain(15))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent[:10])
        await publisher.wait_stored(sent[9].position)
        world.lose(lost)
        offer(world, publisher, sent[10:])
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)
    assert publisher.counters.rollbacks == 1


async def test_an_idle_publisher_notices_that_the_stream_lost_its_tail(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishers, "IDLE_CHECK_S", 0.02)
    sent = list(framing.chain(10))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent)
        await publisher.wait_stored(sent[-1].position)
        world.lose(4)
        await until(lambda: len(world.stream) == 10)
    assert world.stream == wires(sent)


async def test_a_stream_that_goes_back_while_it_is_being_read_is_not_taken_for_one_with_a_hole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker killed between two questions comes back shorter than it had said."""
    monkeypatch.setattr(publishers, "IDLE_CHECK_S", 0.02)
    sent = list(framing.chain(13))
    publisher = world.publisher()
    went_back = False
    get = world.log.get

    async def get_after_a_loss(origin: volumes.Origin, sequence: int) -> event_log.Stored | None:
        nonlocal went_back
        if sequence == 11 and not went_back:
            went_back = True
            world.lose(3)
        return await get(origin, sequence)

    async with running(publisher):
        offer(world, publisher, sent[:10])
        await publisher.wait_stored(sent[9].position)
        for frame in sent[10:]:
            world.spool.append(frame)
        monkeypatch.setattr(world.log, "get", get_after_a_loss)
        for sequence, frame in enumerate(sent[10:], 10):
            # Late ones of ours, whose acknowledgement nobody hears.
            await world.log.append(ORIGIN, frame, sequence)
        await until(lambda: went_back)
        for frame in sent[10:]:
            publisher.offer(frame)
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)


async def test_a_stream_that_lost_more_than_the_spool_holds_stops_the_publisher(world: World) -> None:
    world.restart_spool(segment_bytes=300)
    sent = list(framing.chain(15))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent[:10])
        await publisher.wait_stored(sent[9].position)
        world.spool.release(sent[7].position)
        world.lose(5)
        offer(world, publisher, sent[10:])
        with pytest.raises(errors.Corrupt) as caught:
            await publisher.wait_stored(sent[-1].position)
        assert caught.value.reason == "log-unjoinable"
    assert world.stream == wires(sent[:5]), "nothing was put where it does not belong"


async def test_another_writer_in_the_stream_fences_this_one(world: World) -> None:
    sent = list(framing.chain(15))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent[:10])
        await publisher.wait_stored(sent[9].position)
        (fence,) = framing.chain(1, epoch=2, parent=tip_of(sent[9]))
        assert await world.log.append(ORIGIN, fence, 10) == 11
        offer(world, publisher, sent[10:])
        with pytest.raises(errors.Fenced) as caught:
            await publisher.wait_stored(sent[10].position)
        assert (caught.value.reason, caught.value.facts["epoch"]) == ("fenced-by-other", 2)
        with pytest.raises(errors.Fenced):
            await publisher.wait_stored(sent[10].position)
    assert world.stream == [*wires(sent[:10]), fence.wire]


async def test_an_idle_publisher_notices_that_it_was_fenced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishers, "IDLE_CHECK_S", 0.02)
    sent = list(framing.chain(3))
    publisher = world.publisher()
    async with running(publisher):
        offer(world, publisher, sent)
        await publisher.wait_stored(sent[-1].position)
        (fence,) = framing.chain(1, epoch=2, parent=tip_of(sent[-1]))
        await world.log.append(ORIGIN, fence, 3)
        await until(lambda: isinstance(publisher.error, errors.Fenced))


@pytest.mark.parametrize("published", range(6))
async def test_a_restarted_publisher_goes_on_wherever_the_last_one_ended(
    world: World, published: int
) -> None:
    sent = list(framing.chain(8))
    for number, frame in enumerate(sent[:5]):
        world.spool.append(frame)
        if number < published:
            await world.log.append(ORIGIN, frame, number)
    publisher = world.publisher()
    async with running(publisher):
        assert await publisher.recover() == tip_of(sent[4])
        assert publisher.stored == (sent[published - 1].position if published else None)
        offer(world, publisher, sent[5:])
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)


@pytest.mark.parametrize("spooled", range(5))
async def test_frames_that_only_the_stream_has_come_back_into_the_spool(world: World, spooled: int) -> None:
    """A power cut took the spool's unsynced tail after it had been published."""
    sent = list(framing.chain(8))
    for number, frame in enumerate(sent[:5]):
        await world.log.append(ORIGIN, frame, number)
        if number < spooled:
            world.spool.append(frame)
    publisher = world.publisher()
    async with running(publisher):
        assert await publisher.recover() == tip_of(sent[4])
        assert list(world.spool.frames_after(positions.START)) == sent[:5]
        assert world.spool.durable == sent[4].position
        offer(world, publisher, sent[5:])
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == wires(sent)
    assert publisher.counters.adopted == 5 - spooled


async def test_a_new_epoch_goes_on_behind_what_an_earlier_one_left(world: World) -> None:
    """The parent was written at another site; an orphaned tail of ours stands in stream and spool."""
    old = list(framing.chain(6))
    for number, frame in enumerate(old):
        world.spool.append(frame)
        if number < 5:
            await world.log.append(ORIGIN, frame, number)
    elsewhere = list(framing.chain(3, epoch=2, parent=tip_of(old[3])))
    sent = list(framing.chain(4, epoch=3, parent=tip_of(elsewhere[-1])))
    publisher = world.publisher(epoch=3, parent=tip_of(elsewhere[-1]))
    async with running(publisher):
        assert await publisher.recover() == tip_of(elsewhere[-1])
        assert publisher.stored is None
        offer(world, publisher, sent)
        await publisher.wait_stored(sent[-1].position)
    assert world.stream == [*wires(old[:5]), *wires(sent)]


async def test_a_stream_of_a_later_epoch_is_not_touched(world: World) -> None:
    (later,) = framing.chain(1, epoch=4)
    await world.log.append(ORIGIN, later, 0)
    with pytest.raises(errors.Fenced) as caught:
        await world.publisher(epoch=3).recover()
    assert caught.value.facts["epoch"] == 4


async def test_a_stream_with_another_frame_in_our_place_is_not_touched(world: World) -> None:
    (mine,), (other,) = framing.chain(1, seed=1), framing.chain(1, seed=2)
    world.spool.append(mine)
    await world.log.append(ORIGIN, other, 0)
    with pytest.raises(errors.Fenced):
        await world.publisher().recover()


async def test_a_spool_that_does_not_continue_the_stream_is_not_published(world: World) -> None:
    world.restart_spool(segment_bytes=300)
    sent = list(framing.chain(9))
    for frame in sent:
        world.spool.append(frame)
    world.spool.release(sent[5].position)
    for number, frame in enumerate(sent[:2]):
        await world.log.append(ORIGIN, frame, number)
    with pytest.raises(errors.Corrupt) as caught:
        await world.publisher().recover()
    assert caught.value.reason == "log-unjoinable"
    assert world.stream == wires(sent[:2])


async def test_the_wrong_parent_is_found_before_anything_is_published(world: World) -> None:
    (other,) = framing.chain(1, seed=9)
    sent = list(framing.chain(2, epoch=2, parent=tip_of(other)))
    for frame in sent:
        world.spool.append(frame)
    (parent,) = framing.chain(1)
    with pytest.raises(errors.Corrupt):
        await world.publisher(epoch=2, parent=tip_of(parent)).recover()
    assert world.stream == []
