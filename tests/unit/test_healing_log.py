"""A replicator's log that asks the repair service: real HTTP, a real repair service, streams and nodes in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper.log import event_log
from diffkeeper_repair import repair_api
from diffkeeper_replicator.healing_log import HealingEventLog

TOKEN = "a token of tests"


@contextlib.asynccontextmanager
async def healing(rig: RepairRig) -> AsyncIterator[HealingEventLog]:
    app = http.make_app(TOKEN)
    repair_api.add_routes(app, rig.service)
    async with http.serve(app, "127.0.0.1", 0) as port:
        log = HealingEventLog(rig.logs["west"], f"http://127.0.0.1:{port}", TOKEN)
        try:
            yield log
        finally:
            await log.close()


async def sealed_rig(path: Path, count: int = 20) -> tuple[RepairRig, list[bytes]]:
    rig = RepairRig(path, 6, "4+2")
    await rig.begin()
    sent = await rig.log(framing.chain(count))
    await rig.seal()
    return rig, [frame.wire for frame in sent]


async def taken(log: event_log.EventLog, count: int) -> list[bytes]:
    wires: list[bytes] = []
    async with contextlib.aclosing(log.read(ORIGIN, 1)) as messages:
        async for stored in messages:
            assert stored.stream_sequence == len(wires) + 1
            wires.append(stored.wire)
            if len(wires) == count:
                break
    return wires


async def test_a_reader_gets_every_frame_though_every_stream_lost_some(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path)
    for site in ("east", "west"):
        for place in (0, 6, 7, 8, 19):
            rig.broker.stream(site, ORIGIN).messages[place] = None
    async with healing(rig) as log:
        assert await taken(log, 20) == wires
        assert log.healed_total == 5
        last = await log.last(ORIGIN)
        assert last == event_log.Stored(20, wires[19])
        assert rig.service.finder.served_from_shards_total == 6


async def test_the_other_sites_stream_is_asked_before_the_shards(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path)
    rig.broker.stream("west", ORIGIN).messages[4] = None
    async with healing(rig) as log:
        assert await taken(log, 20) == wires
        assert rig.service.finder.served_from_shards_total == 0


async def test_an_altered_message_is_replaced_by_the_true_one(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path)
    for site in ("east", "west"):
        rig.broker.stream(site, ORIGIN).messages[4] = b"DKF1" + bytes(20)
    async with healing(rig) as log:
        assert await log.get(ORIGIN, 5) == event_log.Stored(5, wires[4])
        assert await log.get(ORIGIN, 21) is None, "not lost: not there yet"


async def test_what_nobody_has_stays_damage_and_is_not_skipped(tmp_path: Path) -> None:
    rig, _ = await sealed_rig(tmp_path)
    for site in ("east", "west"):
        rig.broker.stream(site, ORIGIN).messages[4] = None
    for store in rig.stores.values():
        store.wipe()
    await rig.service.scrub()
    async with healing(rig) as log:
        with pytest.raises(errors.Corrupt) as caught:
            await taken(log, 20)
        assert caught.value.reason == "stream-gap"


async def test_a_repair_service_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path)
    log = HealingEventLog(rig.logs["west"], "http://127.0.0.1:1", TOKEN)
    assert await taken(log, 20) == wires
    rig.broker.stream("west", ORIGIN).messages[4] = None
    with pytest.raises(errors.Corrupt):
        await taken(log, 20)
    await log.close()
