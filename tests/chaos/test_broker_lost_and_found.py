"""What readers, mirrors and appends do when a broker is not there, is another than thought, or
has lost a message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import nats
import pytest
from tests.support import brokers as support
from tests.support import framing
from tests.support.lossy_proxy import LossyProxy

from diffkeeper import nats_server
from diffkeeper.domain import errors, frames
from diffkeeper.log import event_log, nats_event_log, nats_streams

pytestmark = pytest.mark.disaster

ORIGIN = framing.ORIGIN


async def append_all(log: event_log.EventLog, sent: list[frames.Frame], expected: int = 0) -> None:
    await asyncio.gather(*(log.append(ORIGIN, frame, expected + at) for at, frame in enumerate(sent)))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await holds():  # noqa: ASYNC110  another process changes
            await asyncio.sleep(0.02)


async def ends_at(log: event_log.EventLog, sequence: int) -> bool:
    try:
        last = await log.last(ORIGIN)
    except errors.Transient:
        return False
    return last is not None and last.stream_sequence == sequence


async def api(server: nats_server.NatsServer, subject: str, body: dict[str, object]) -> dict[str, object]:
    """A raw JetStream call, as another program would make it."""
    client = await nats.connect(
        server.config.client_url, user=nats_server.USER, password=support.SECRET, allow_reconnect=False
    )
    try:
        answer: dict[str, object] = json.loads(
            (await client.request(f"$JS.API.{subject}", json.dumps(body).encode())).data
        )
        return answer
    finally:
        await client.close()


async def test_a_reader_goes_on_through_the_death_of_its_broker(brokers: support.Brokers) -> None:
    await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    sent = list(framing.chain(60))
    await append_all(log, sent[:20])
    taken: list[bytes] = []

    async def read() -> None:
        async for stored in log.read(ORIGIN, 1):
            taken.append(stored.wire)
            assert stored.stream_sequence == len(taken)
            if len(taken) == len(sent):
                return

    reading = asyncio.create_task(read())
    for start in (20, 40):
        await brokers.servers["east"].kill()
        await brokers.restart("east")
        await until(lambda at=start: ends_at(log, at))  # type: ignore[misc]
        await append_all(log, sent[start : start + 20], start)
    async with asyncio.timeout(15):
        await reading
    assert taken == [frame.wire for frame in sent]


async def test_a_connection_that_is_reset_in_the_middle_of_publishing_is_made_anew_each_time(
    brokers: support.Brokers,
) -> None:
    server = await brokers.start("east")
    proxy = LossyProxy(server.config.client_port)
    log = await brokers.log("east", await proxy.start())
    await log.create_origin(ORIGIN)
    frame = next(iter(framing.chain(1, size=400_000)))
    try:
        for _ in range(3):
            await until(lambda: has_answered(log))
            proxy.stall()
            # More than the line takes: the client has some left to flush when it learns of the reset.
            sent = [log.append(ORIGIN, frame, 0) for _ in range(40)]
            await asyncio.sleep(0.2)
            proxy.reset_clients()
            await asyncio.gather(*sent, return_exceptions=True)
        await until(lambda: has_answered(log))
    finally:
        await proxy.stop()


async def has_answered(log: event_log.EventLog) -> bool:
    try:
        await log.origins()
    except errors.Transient:
        return False
    return True


async def test_a_mirror_outlives_its_origin_with_everything_it_had(brokers: support.Brokers) -> None:
    await brokers.start("east")
    await brokers.start("west", hub="east")
    east, west = await brokers.log("east"), await brokers.log("west")
    await east.create_origin(ORIGIN)
    await west.create_mirror(ORIGIN)
    sent = list(framing.chain(300, size=3000))
    await append_all(east, sent)
    await until(lambda: ends_at(west, 300))
    await brokers.servers["east"].kill()
    taken: list[bytes] = []
    async with asyncio.timeout(10):
        async for stored in west.read(ORIGIN, 1):
            taken.append(stored.wire)
            if len(taken) == 300:
                break
    assert taken == [frame.wire for frame in sent]
    # Killed and started alone, it still has them.
    await brokers.servers["west"].kill()
    await brokers.restart("west")
    await until(lambda: ends_at(west, 300))


async def test_a_mirror_that_was_away_catches_up(brokers: support.Brokers) -> None:
    await brokers.start("east")
    await brokers.start("west", hub="east")
    east, west = await brokers.log("east"), await brokers.log("west")
    await east.create_origin(ORIGIN)
    await west.create_mirror(ORIGIN)
    sent = list(framing.chain(60))
    await append_all(east, sent[:30])
    await until(lambda: ends_at(west, 30))
    await brokers.servers["west"].kill()
    await append_all(east, sent[30:], 30)
    await brokers.restart("west")
    await until(lambda: ends_at(west, 60))
    last = await west.last(ORIGIN)
    assert last is not None and last.wire == sent[-1].wire


@pytest.mark.parametrize("made", ["before the outage", "in the outage"])
async def test_a_reader_of_a_mirror_goes_on_soon_after_the_origin_was_away(
    brokers: support.Brokers, made: str
) -> None:
    """The mirror itself finds its origin again only after 10 s and more."""
    await brokers.start("east")
    await brokers.start("west", hub="east")
    east, west = await brokers.log("east"), await brokers.log("west")
    await east.create_origin(ORIGIN)
    sent = list(framing.chain(60))
    await append_all(east, sent[:30])
    if made == "before the outage":
        await west.create_mirror(ORIGIN)
        await until(lambda: ends_at(west, 30))
    await brokers.servers["east"].kill()
    if made == "in the outage":
        await west.create_mirror(ORIGIN)
    taken: list[bytes] = []

    async def read() -> None:
        async for stored in west.read(ORIGIN, 1):
            taken.append(stored.wire)
            if len(taken) == len(sent):
                return

    reading = asyncio.create_task(read())
    await brokers.restart("east")
    await until(lambda: ends_at(east, 30))
    await append_all(east, sent[30:], 30)
    began = time.monotonic()
    async with asyncio.timeout(20):
        await reading
    assert time.monotonic() - began < 7
    assert taken == [frame.wire for frame in sent]


async def test_an_append_without_a_connection_fails_at_once_and_is_never_sent_later(
    brokers: support.Brokers,
) -> None:
    await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    sent = list(framing.chain(2))
    await log.append(ORIGIN, sent[0], 0)
    await brokers.servers["east"].kill()

    async def refuses() -> bool:
        began = time.monotonic()
        with pytest.raises(errors.Transient) as caught:
            await log.append(ORIGIN, sent[1], 1)
        assert time.monotonic() - began < 1
        return isinstance(caught.value, errors.Unreachable)

    await until(refuses)
    await brokers.restart("east")
    await until(lambda: ends_at(log, 1))
    await asyncio.sleep(0.3)
    assert await ends_at(log, 1), "nothing was buffered"


async def test_a_message_missing_in_the_stream_is_an_error_and_never_skipped(
    brokers: support.Brokers,
) -> None:
    server = await brokers.start("east")
    log = await brokers.log("east")
    # A stream that lets one message be taken out stands for a broker that lost it.
    loose: dict[str, object] = {"name": ORIGIN.stream, "subjects": [ORIGIN.subject], "storage": "file"}
    assert "error" not in await api(server, f"STREAM.CREATE.{ORIGIN.stream}", loose)
    sent = list(framing.chain(6))
    await append_all(log, sent)
    await api(server, f"STREAM.MSG.DELETE.{ORIGIN.stream}", {"seq": 4})
    reader = log.read(ORIGIN, 1)
    assert [(await anext(reader)).wire for _ in range(3)] == [frame.wire for frame in sent[:3]]
    with pytest.raises(errors.Corrupt) as caught:
        await anext(reader)
    assert (caught.value.reason, caught.value.facts["expected"]) == ("stream-gap", 4)
    assert await log.get(ORIGIN, 4) is None
    # Also where reading begins.
    with pytest.raises(errors.Corrupt):
        await anext(aiter(log.read(ORIGIN, 4)))
    await api(server, f"STREAM.MSG.DELETE.{ORIGIN.stream}", {"seq": 6})
    with pytest.raises(errors.Corrupt):
        await log.last(ORIGIN)


async def test_nobody_can_delete_or_purge_in_a_stream_of_the_log(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    await append_all(log, list(framing.chain(3)))
    assert "error" in await api(server, f"STREAM.MSG.DELETE.{ORIGIN.stream}", {"seq": 2})
    assert "error" in await api(server, f"STREAM.PURGE.{ORIGIN.stream}", {})
    assert await ends_at(log, 3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_age": 3600_000_000_000}, "max_age"),
        ({"discard": "old"}, "discard"),
        ({"deny_delete": False}, "deny_delete"),
        ({"compression": "s2"}, "compression"),
        ({"subjects": ["dk.orders.east.>"]}, "subjects"),
    ],
)
async def test_a_stream_of_another_configuration_is_refused_by_name_of_the_field(
    brokers: support.Brokers, change: dict[str, object], field: str
) -> None:
    server = await brokers.start("east")
    log = await brokers.log("east")
    config = {**nats_streams.origin_config(ORIGIN, 1), **change}
    assert "error" not in await api(server, f"STREAM.CREATE.{ORIGIN.stream}", config)
    with pytest.raises(errors.Misconfigured) as caught:
        await log.create_origin(ORIGIN)
    assert caught.value.facts["field"] == field


async def test_readers_leave_no_consumer_behind(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    await append_all(log, list(framing.chain(5)))

    async def read_two() -> None:
        reader = log.read(ORIGIN, 1)
        await anext(reader)
        await anext(reader)
        await reader.aclose()

    await asyncio.gather(*(read_two() for _ in range(10)))
    cancelled = [asyncio.create_task(read_forever(log)) for _ in range(5)]
    await until(lambda: has_consumers(server, 5))
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    await until(lambda: has_consumers(server, 0))


async def read_forever(log: nats_event_log.NatsEventLog) -> None:
    async for _ in log.read(ORIGIN, 1):
        pass


async def has_consumers(server: nats_server.NatsServer, count: int) -> bool:
    info = await api(server, f"STREAM.INFO.{ORIGIN.stream}", {})
    state = info["state"]
    assert isinstance(state, dict)
    return bool(state["consumer_count"] == count)


async def test_garbage_on_the_confirm_subject_is_counted_and_passed_over(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    log = await brokers.log("east")
    (frame,) = framing.chain(1)
    said = event_log.Confirmation("west", frame.position, frame.hash, frame.position, 1)
    heard = log.confirmations(ORIGIN)
    first = asyncio.ensure_future(anext(heard))
    client = await nats.connect(
        server.config.client_url, user=nats_server.USER, password=support.SECRET, allow_reconnect=False
    )

    async def counted() -> bool:
        await client.publish(ORIGIN.confirm_subject, b"\xc1 nothing")
        await client.flush()
        return log.garbage_confirmations > 0

    await until(counted)
    await client.close()
    await log.confirm(ORIGIN, said)
    async with asyncio.timeout(5):
        assert await first == said
    await heard.aclose()


async def test_wrong_credentials_and_wrong_sites_are_told_at_once(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    url = server.config.client_url
    with pytest.raises(errors.Unauthorised):
        await nats_event_log.NatsEventLog.connect("east", [url], password="wrong", timeout_s=1)
    with pytest.raises(errors.Misconfigured) as caught:
        await nats_event_log.NatsEventLog.connect("west", [url], password=support.SECRET)
    assert caught.value.reason == "wrong-domain"
    closed = f"nats://127.0.0.1:{nats_server.free_port()}"
    with pytest.raises(errors.Unreachable):
        await nats_event_log.NatsEventLog.connect("east", [closed], password=support.SECRET, timeout_s=0.5)
