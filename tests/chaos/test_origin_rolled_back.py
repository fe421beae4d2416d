"""FAULTS 9: the origin's broker comes back with an older store while replicas are ahead, and writes anew over it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support import brokers as support
from tests.support import framing
from tests.support.made_logs import FrameChain
from tests.support.replicators import ReplicatorProcess

from diffkeeper.domain import frames
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper.log import event_log

pytestmark = pytest.mark.disaster

ORIGIN = framing.ORIGIN
ROLE = {
    "role": "follow",
    "epoch": 1,
    "leader": "east",
    "chain": [{"site": "east", "epoch": 1, "parent": None}],
}


async def append_all(log: event_log.EventLog, sent: Sequence[frames.Frame], expected: int) -> None:
    await asyncio.gather(*(log.append(ORIGIN, frame, expected + at) for at, frame in enumerate(sent)))


async def status_until(replicator: ReplicatorProcess, key: str, wanted: str) -> dict[str, Any]:
    """The volume's status once ``key`` (``error``: its reason) is as wanted."""
    status: dict[str, Any] = {}
    try:
        async with asyncio.timeout(60):
            while True:
                status = await replicator.call("GET", "/v1/volumes/orders")
                found = status[key]
                if (found["reason"] if isinstance(found, dict) else found) == wanted:
                    return status
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{key} did not become {wanted}: {status}") from None


async def test_an_origin_that_went_back_and_wrote_anew_is_found_by_hash_and_nothing_of_it_is_applied(
    brokers: support.Brokers, tmp_path: Path
) -> None:
    east_server = await brokers.start("east")
    west_server = await brokers.start("west", hub="east")
    east = await brokers.log("east")
    await east.create_origin(ORIGIN)
    create = Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0))
    chain = FrameChain()
    sent = [chain.frame([create], frames.Flag.BASE | frames.Flag.BASE_END)]
    sent += [chain.frame([write(2, number * 10, b"good %04d\n" % number)]) for number in range(6)]
    west = ReplicatorProcess("west", tmp_path / "replicator", west_server.config.client_url)
    await west.start()
    try:
        await append_all(east, sent[:4], 0)
        await west.call("PUT", "/v1/volumes/orders", ROLE)
        await status_until(west, "applied", str(sent[3].position))
        await east_server.kill()
        store = tmp_path / "old-store"
        shutil.copytree(east_server.config.dir, store)
        await brokers.restart("east")
        await append_all(await brokers.log("east"), sent[4:], 4)
        await status_until(west, "applied", str(sent[-1].position))

        # An old store is put in the place of the new one, and a writer that knows no better goes on from it.
        await brokers.servers["east"].kill()
        shutil.rmtree(east_server.config.dir)
        shutil.copytree(store, east_server.config.dir)
        await brokers.restart("east")
        other = FrameChain(tip=frames.Tip(sent[3].position, sent[3].hash))
        anew = [other.frame([write(2, 0, b"phantom %d" % number)]) for number in range(6)]
        await append_all(await brokers.log("east"), anew, 4)

        status = await status_until(west, "error", "fork")
        assert (status["state"], status["journalled"]) == ("stalled", str(sent[-1].position))
        assert "dkctl verify" in status["error"]["hint"], "the operator is told what to do"
        content = (tmp_path / "replicator" / "volumes" / "orders" / "data").read_bytes()
        assert content == b"".join(b"good %04d\n" % number for number in range(6))
        proof = await west.call("POST", "/v1/volumes/orders/verify", {})
        assert proof["ok"] is True, "what was confirmed is whole"

        # Nor does a restart make it forget.
        await west.kill()
        await west.start()
        status = await status_until(west, "error", "fork")
        assert status["journalled"] == str(sent[-1].position)
    finally:
        await west.stop()
