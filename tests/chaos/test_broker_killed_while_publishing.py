"""The broker dies, loses acknowledgements or the line in the middle of pipelined publishing: each frame is
stored once, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.support import brokers as support
from tests.support import framing
from tests.support.lossy_proxy import LossyProxy

from diffkeeper.domain import errors, frames
from diffkeeper.log import event_log, nats_event_log
from diffkeeper_capture import publisher as publishers
from diffkeeper_capture import spool as spools

pytestmark = pytest.mark.disaster


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[spools.Spool]:
    opened = spools.Spool.open(tmp_path / "spool")
    yield opened
    opened.close()


@contextlib.asynccontextmanager
async def publishing(log: event_log.EventLog, spool: spools.Spool) -> AsyncIterator[publishers.Publisher]:
    publisher = publishers.Publisher(
        log, framing.ORIGIN, spool, epoch=1, parent=frames.ORIGIN_TIP, window=publishers.Window(64, 1 << 20)
    )
    await publisher.recover()
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def offer_all(publisher: publishers.Publisher, spool: spools.Spool, sent: list[frames.Frame]) -> None:
    for frame in sent:
        spool.append(frame)
        publisher.offer(frame)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110  another process changes
            await asyncio.sleep(0.02)


async def stored_wires(log: nats_event_log.NatsEventLog, count: int) -> list[bytes]:
    wires: list[bytes] = []
    async for stored in log.read(framing.ORIGIN, 1):
        wires.append(stored.wire)
        if len(wires) == count:
            break
    last = await log.last(framing.ORIGIN)
    assert last is not None and last.stream_sequence == count, "nothing stands behind the last frame"
    return wires


async def holds_at_least(log: nats_event_log.NatsEventLog, count: int) -> bool:
    last = await log.last(framing.ORIGIN)
    return last is not None and last.stream_sequence >= count


async def has_held(proxy: LossyProxy, count: int) -> bool:
    return proxy.held_bytes >= count


async def is_full(publisher: publishers.Publisher) -> bool:
    return publisher.trouble is not None and publisher.trouble.reason == "log-full"


@pytest.mark.parametrize("seed", range(3))
async def test_each_frame_is_stored_once_when_the_broker_is_killed_again_and_again(
    brokers: support.Brokers, spool: spools.Spool, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(framing.ORIGIN)
    sent = list(framing.chain(1500, size=2000))
    async with publishing(log, spool) as publisher:
        kills = sorted(rng.sample(range(100, 1400), 3))
        for number, frame in enumerate(sent):
            spool.append(frame)
            publisher.offer(frame)
            if number % 20 == 0:
                await asyncio.sleep(0.002)
            if number in kills:
                await brokers.servers["east"].kill()
                await brokers.restart("east")
        await publisher.wait_stored(sent[-1].position)
        assert publisher.behind_bytes == 0
        assert publisher.counters.checks >= 1
    assert await stored_wires(log, len(sent)) == [frame.wire for frame in sent]


async def test_lost_acknowledgements_do_not_store_a_frame_twice(
    brokers: support.Brokers, spool: spools.Spool
) -> None:
    server = await brokers.start("east")
    proxy = LossyProxy(server.config.client_port)
    log = await brokers.log("east", await proxy.start())
    direct = await brokers.log("east")
    await direct.create_origin(framing.ORIGIN)
    sent = list(framing.chain(300))
    try:
        async with publishing(log, spool) as publisher:
            for number, frame in enumerate(sent):
                spool.append(frame)
                publisher.offer(frame)
                if number == 30:
                    proxy.deaf = True
            # The server stores what it is sent; its word does not arrive.
            await until(lambda: holds_at_least(direct, 64))
            assert publisher.stored is None or publisher.stored < sent[-1].position
            await proxy.cut()
            proxy.deaf = False
            await publisher.wait_stored(sent[-1].position)
    finally:
        await proxy.stop()
    assert await stored_wires(direct, len(sent)) == [frame.wire for frame in sent]


@pytest.mark.parametrize("late", ["before the resend", "after the resend"])
async def test_a_publish_that_was_held_up_on_the_line_is_stored_once(
    brokers: support.Brokers, spool: spools.Spool, late: str
) -> None:
    """The line breaks with appends in it; they arrive when the publisher has long asked, or
    sent them again.
    """
    server = await brokers.start("east")
    proxy = LossyProxy(server.config.client_port)
    log = await brokers.log("east", await proxy.start())
    direct = await brokers.log("east")
    await direct.create_origin(framing.ORIGIN)
    sent = list(framing.chain(40))
    try:
        async with publishing(log, spool) as publisher:
            offer_all(publisher, spool, sent[:10])
            await publisher.wait_stored(sent[9].position)
            proxy.holding = True
            offer_all(publisher, spool, sent[10:20])
            await until(lambda: has_held(proxy, sum(len(frame.wire) for frame in sent[10:20])))
            proxy.holding = False
            await proxy.cut_clients()
            if late == "before the resend":
                assert await proxy.deliver() > 0
            offer_all(publisher, spool, sent[20:])
            await publisher.wait_stored(sent[-1].position)
            if late == "after the resend":
                assert await proxy.deliver() > 0
                await asyncio.sleep(0.2)
            assert publisher.error is None
    finally:
        await proxy.stop()
    assert await stored_wires(direct, len(sent)) == [frame.wire for frame in sent]


async def test_a_frame_that_overtook_its_own_resend_counts_as_stored(
    brokers: support.Brokers, spool: spools.Spool
) -> None:
    """The publisher has asked and been told "not stored"; then the first copy arrives after all."""
    await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(framing.ORIGIN)
    sent = list(framing.chain(10))
    async with publishing(log, spool) as publisher:
        for number, frame in enumerate(sent):
            # Another connection of ours delivers the frame first.
            assert await log.append(framing.ORIGIN, frame, number) == number + 1
            spool.append(frame)
            publisher.offer(frame)
            await publisher.wait_stored(frame.position)
        assert publisher.counters.checks >= len(sent)
    assert await stored_wires(log, len(sent)) == [frame.wire for frame in sent]


async def test_a_second_writer_fences_the_first(brokers: support.Brokers, spool: spools.Spool) -> None:
    await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(framing.ORIGIN)
    mine = list(framing.chain(20))
    async with publishing(log, spool) as publisher:
        for frame in mine[:10]:
            spool.append(frame)
            publisher.offer(frame)
        await publisher.wait_stored(mine[9].position)
        tip = frames.Tip(mine[9].position, mine[9].hash)
        (fence,) = framing.chain(1, epoch=2, parent=tip)
        other = await brokers.log("east")
        await other.append(framing.ORIGIN, fence, 10)
        for frame in mine[10:]:
            spool.append(frame)
            publisher.offer(frame)
        with pytest.raises(errors.Fenced) as caught:
            await publisher.wait_stored(mine[10].position)
        assert caught.value.reason == "fenced-by-other"
        assert caught.value.facts["epoch"] == 2
        assert publisher.stored == mine[9].position
    assert await stored_wires(log, 11) == [frame.wire for frame in [*mine[:10], fence]]


async def test_a_full_broker_is_waited_for_and_nothing_is_lost(
    brokers: support.Brokers, spool: spools.Spool
) -> None:
    server = await brokers.start("east", max_file_store_bytes=1 << 20)
    log = await brokers.log("east")
    await log.create_origin(framing.ORIGIN)
    sent = list(framing.chain(40, size=65_536))
    async with publishing(log, spool) as publisher:
        for frame in sent:
            spool.append(frame)
            publisher.offer(frame)
        await until(lambda: is_full(publisher))
        assert publisher.stored is not None and publisher.stored < sent[-1].position
        await server.stop()
        await brokers.restart("east", max_file_store_bytes=1 << 30)
        await publisher.wait_stored(sent[-1].position)
        assert publisher.trouble is None
    assert await stored_wires(log, len(sent)) == [frame.wire for frame in sent]


@pytest.mark.parametrize("idle", [False, True])
async def test_acknowledged_frames_that_a_broker_lost_on_disk_are_published_again(
    brokers: support.Brokers, spool: spools.Spool, idle: bool
) -> None:
    """A flipped bit at the end of the newest block: the server cuts its stream there without a word."""
    server = await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(framing.ORIGIN)
    sent = list(framing.chain(30, size=500))
    async with publishing(log, spool) as publisher:
        offer_all(publisher, spool, sent[:20])
        await publisher.wait_stored(sent[19].position)
        await server.kill()
        flip_near_the_end(server.config.dir)
        await brokers.restart("east")
        if not idle:
            offer_all(publisher, spool, sent[20:])
            await publisher.wait_stored(sent[-1].position)
        await until(lambda: has_rolled_back(publisher))
        published = sent[:20] if idle else sent
        await until(lambda: holds_at_least(log, len(published)))
    assert await stored_wires(log, len(published)) == [frame.wire for frame in published]


async def has_rolled_back(publisher: publishers.Publisher) -> bool:
    return publisher.counters.rollbacks > 0


def flip_near_the_end(directory: Path) -> None:
    newest = max(directory.rglob("*.blk"), key=lambda path: int(path.stem))
    data = bytearray(newest.read_bytes())
    data[-60] ^= 0xFF
    newest.write_bytes(data)
    # The server's own note of where the stream ended is written from time to time; without it, it reads the
    # blocks.
    for index in directory.rglob("index.db"):
        index.unlink()
