"""What every event log must do, held against the memory adapter and against real NATS servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from tests.support import brokers as support
from tests.support import framing

from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log import event_log, memory_event_log

ORIGIN = framing.ORIGIN


@dataclass
class Sites:
    """Two linked sites, each seen through its own log."""

    east: event_log.EventLog
    west: event_log.EventLog


async def first(
    log: event_log.EventLog, origin: volumes.Origin, count: int, at: int = 1
) -> list[event_log.Stored]:
    """The ``count`` messages from ``at`` on, within ten seconds."""
    taken: list[event_log.Stored] = []
    reader = log.read(origin, at)
    async with asyncio.timeout(10):
        async for stored in reader:
            taken.append(stored)
            if len(taken) == count:
                break
    return taken


async def append_all(log: event_log.EventLog, sent: list[frames.Frame], expected: int = 0) -> list[int]:
    """Pipelined, as a publisher does it."""
    appends, before = [], None
    for number, frame in enumerate(sent):
        appends.append(log.append(ORIGIN, frame, expected + number, before))
        before = frame
    return list(await asyncio.gather(*appends))


class EventLogContract:
    async def test_a_new_stream_is_empty_and_creating_it_again_changes_nothing(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        await sites.east.create_origin(ORIGIN)
        assert await sites.east.last(ORIGIN) is None
        assert await sites.east.get(ORIGIN, 1) is None

    async def test_a_stream_that_is_a_mirror_is_refused_as_an_origin(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        await sites.west.create_mirror(ORIGIN)
        with pytest.raises(errors.Misconfigured) as caught:
            await sites.west.create_origin(ORIGIN)
        assert caught.value.facts["field"] in ("mirror", "subjects")

    async def test_pipelined_appends_are_stored_in_order(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(200))
        assert await append_all(sites.east, sent) == list(range(1, 201))
        stored = await first(sites.east, ORIGIN, 200)
        assert [(one.stream_sequence, one.wire) for one in stored] == [
            (number, frame.wire) for number, frame in enumerate(sent, 1)
        ]

    async def test_last_and_get_give_what_was_stored(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(3))
        await append_all(sites.east, sent)
        assert await sites.east.last(ORIGIN) == event_log.Stored(3, sent[2].wire)
        assert await sites.east.get(ORIGIN, 2) == event_log.Stored(2, sent[1].wire)
        assert await sites.east.get(ORIGIN, 4) is None

    async def test_the_largest_frame_passes_through_append_get_and_read(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        (frame,) = framing.chain(1, size=1 << 20)
        assert await sites.east.append(ORIGIN, frame, 0) == 1
        last = await sites.east.last(ORIGIN)
        assert last is not None and last.wire == frame.wire
        assert (await first(sites.east, ORIGIN, 1))[0].wire == frame.wire

    @pytest.mark.parametrize("expected", [0, 1, 3, 9])
    async def test_an_append_elsewhere_than_the_end_is_fenced_and_stores_nothing(
        self, sites: Sites, expected: int
    ) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(3))
        await append_all(sites.east, sent[:2])
        with pytest.raises(errors.Fenced) as caught:
            await sites.east.append(ORIGIN, sent[2], expected)
        assert caught.value.reason == "wrong-last-sequence"
        last = await sites.east.last(ORIGIN)
        assert last is not None and last.stream_sequence == 2

    async def test_the_same_frame_twice_is_stored_once(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        (frame,) = framing.chain(1)
        results = await asyncio.gather(
            *(sites.east.append(ORIGIN, frame, 0) for _ in range(5)), return_exceptions=True
        )
        assert 1 in results
        # A broker may acknowledge the place the frame already has, or refuse; it never stores it again.
        assert all(result == 1 or isinstance(result, errors.Fenced) for result in results)
        last = await sites.east.last(ORIGIN)
        assert last is not None and last.stream_sequence == 1

    async def test_nothing_passes_behind_a_stranger_in_the_place_of_a_frame_under_way(
        self, sites: Sites
    ) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(5))
        (stranger,) = framing.chain(1, epoch=2)
        await sites.east.append(ORIGIN, stranger, 0)
        appends = [sites.east.append(ORIGIN, sent[0], 0)]
        appends += [sites.east.append(ORIGIN, sent[n], n, after=sent[n - 1]) for n in range(1, 5)]
        results = await asyncio.gather(*appends, return_exceptions=True)
        assert all(isinstance(result, errors.Fenced) for result in results)
        assert await sites.east.last(ORIGIN) == event_log.Stored(1, stranger.wire)

    async def test_of_two_writers_one_wins_each_place(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        one, other = list(framing.chain(1, seed=1)), list(framing.chain(1, seed=2))
        results = await asyncio.gather(
            sites.east.append(ORIGIN, one[0], 0),
            sites.east.append(ORIGIN, other[0], 0),
            return_exceptions=True,
        )
        assert sorted(isinstance(result, errors.Fenced) for result in results) == [False, True]

    async def test_a_stream_that_does_not_exist_is_not_found_and_takes_nothing(self, sites: Sites) -> None:
        missing = volumes.Origin("nothing", "east")
        with pytest.raises(errors.NotFound):
            await sites.east.last(missing)
        with pytest.raises(errors.NotFound):
            await anext(aiter(sites.east.read(missing, 1)))
        (frame,) = framing.chain(1)
        with pytest.raises(errors.Unreachable):
            await sites.east.append(missing, frame, 0)

    async def test_a_reader_begins_where_it_is_told_and_gets_what_comes_later(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(10))
        await append_all(sites.east, sent[:6])
        waiting = asyncio.create_task(first(sites.east, ORIGIN, 6, at=5))
        await append_all(sites.east, sent[6:], expected=6)
        assert [one.wire for one in await waiting] == [frame.wire for frame in sent[4:]]

    async def test_a_reader_beyond_the_end_waits_for_exactly_that_message(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(4))
        await append_all(sites.east, sent[:1])
        waiting = asyncio.create_task(first(sites.east, ORIGIN, 1, at=3))
        await append_all(sites.east, sent[1:], expected=1)
        assert (await waiting)[0] == event_log.Stored(3, sent[2].wire)

    async def test_a_mirror_holds_the_same_bytes_at_the_same_places(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        await sites.west.create_mirror(ORIGIN)
        await sites.west.create_mirror(ORIGIN)
        sent = list(framing.chain(50))
        await append_all(sites.east, sent)
        stored = await first(sites.west, ORIGIN, 50)
        assert [(one.stream_sequence, one.wire) for one in stored] == [
            (number, frame.wire) for number, frame in enumerate(sent, 1)
        ]
        # A reader may be ahead of the mirror: what that has not got yet is read from the origin.
        async with asyncio.timeout(30):
            while await sites.west.last(ORIGIN) != stored[-1]:  # noqa: ASYNC110  another process changes
                await asyncio.sleep(0.02)
        east = await sites.east.last(ORIGIN)
        assert east is not None and east.stream_sequence == 50, "the link did not store anything twice"

    async def test_a_site_knows_whose_streams_it_holds(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        await sites.west.create_mirror(ORIGIN)
        other = volumes.Origin("a-b", "west")
        await sites.west.create_origin(other)
        assert await sites.east.origins() == [ORIGIN]
        assert await sites.west.origins() == [other, ORIGIN]

    async def test_confirmations_reach_the_writer_from_every_site(self, sites: Sites) -> None:
        await sites.east.create_origin(ORIGIN)
        sent = list(framing.chain(2))
        async with listening(sites.east, ORIGIN) as heard:
            for site, log in (("west", sites.west), ("east", sites.east)):
                said = event_log.Confirmation(site, sent[1].position, sent[1].hash, sent[0].position, 7)
                async with asyncio.timeout(10):
                    while True:
                        # Lossy by contract, and the listener may not be known everywhere yet: said again.
                        await log.confirm(ORIGIN, said)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.1):
                                if await heard.get() == said:
                                    break


@contextlib.asynccontextmanager
async def listening(
    log: event_log.EventLog, origin: volumes.Origin
) -> AsyncIterator[asyncio.Queue[event_log.Confirmation]]:
    heard: asyncio.Queue[event_log.Confirmation] = asyncio.Queue()

    async def listen() -> None:
        async for confirmation in log.confirmations(origin):
            heard.put_nowait(confirmation)

    task = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestMemoryEventLog(EventLogContract):
    @pytest.fixture
    def sites(self) -> Sites:
        broker = memory_event_log.MemoryBroker()
        return Sites(
            memory_event_log.MemoryEventLog(broker, "east"), memory_event_log.MemoryEventLog(broker, "west")
        )


class TestNatsEventLog(EventLogContract):
    @pytest.fixture
    async def sites(self, brokers: support.Brokers) -> Sites:
        await brokers.start("east")
        await brokers.start("west", hub="east")
        return Sites(await brokers.log("east"), await brokers.log("west"))
