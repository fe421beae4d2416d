"""A replicator is killed with SIGKILL at random moments under load: in the end it equals the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import brokers as support
from tests.support.followers import VOLUME
from tests.support.made_logs import FrameChain, MadeLog
from tests.support.replicators import ReplicatorProcess

from diffkeeper.domain import frames, positions, volumes
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper.log import event_log

pytestmark = pytest.mark.disaster

ORIGIN = volumes.Origin(VOLUME, "east")
FRAMES = 300


@pytest.fixture
async def replicator(brokers: support.Brokers, tmp_path: Path) -> AsyncIterator[ReplicatorProcess]:
    await brokers.start("east")
    await brokers.start("west", hub="east")
    made = ReplicatorProcess("west", tmp_path / "site-west", brokers.servers["west"].config.client_url)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


class Load:
    """Frames of every operation, and what was confirmed of them."""

    def __init__(self, log: event_log.EventLog, rng: random.Random) -> None:
        self.log = log
        self.rng = rng
        self.chain = FrameChain(VOLUME, "east")
        self.sent = 0
        self.confirmed: dict[positions.Position, bytes] = {}
        self.hashes: dict[positions.Position, bytes] = {positions.START: frames.NO_HASH}

    async def publish(self) -> None:
        made = MadeLog(self.rng.randrange(1 << 16) for _ in range(1 << 20)).deltas()
        for number in range(FRAMES):
            run = [next(made) for _ in range(self.rng.randrange(1, 40))]
            flags = frames.Flag.BASE_END if number == 0 else frames.NO_FLAGS
            frame = self.chain.frame(run, flags)
            self.hashes[frame.position] = frame.hash
            await self.log.append(ORIGIN, frame, self.sent)
            self.sent += 1
            await asyncio.sleep(self.rng.random() * 0.02)

    async def listen(self) -> None:
        async for said in self.log.confirmations(ORIGIN):
            assert self.hashes[said.position] == said.frame_hash, "confirmed what was never sent"
            self.confirmed[said.position] = said.frame_hash


@pytest.mark.parametrize("seed", range(3))
async def test_a_replicator_killed_again_and_again_ends_equal_to_the_log(
    brokers: support.Brokers, replicator: ReplicatorProcess, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    load = Load(log, rng)
    listening = asyncio.create_task(load.listen())
    role = {"role": "follow", "epoch": 1, "leader": "east", "chain": [{"site": "east", "epoch": 1}]}
    await replicator.call("PUT", f"/v1/volumes/{VOLUME}", role)
    publishing = asyncio.create_task(load.publish())
    kills = 0
    while not publishing.done():
        await asyncio.sleep(rng.random() * 0.8)
        held = max(load.confirmed, default=positions.START)
        await replicator.kill()
        await replicator.start()
        kills += 1
        status = await replicator.call("GET", f"/v1/volumes/{VOLUME}")
        assert positions.parse(status["journalled"]) >= held, "what was confirmed is on disk"
    await publishing
    last = str(load.chain.tip.position)
    caught = await replicator.call(
        "POST", f"/v1/volumes/{VOLUME}/catch-up", {"position": last, "timeout_s": 20}
    )
    assert caught["hash"] == load.chain.tip.hash.hex()
    proof = await replicator.call("POST", f"/v1/volumes/{VOLUME}/verify", {})
    assert proof["ok"] is True, proof
    assert proof["chain"]["frames"] == FRAMES
    status = await replicator.call("GET", f"/v1/volumes/{VOLUME}")
    assert status["state"] == "following", status
    # After all that it can still be given away, and a clean end starts again at once.
    assert await replicator.stop() == 0
    await replicator.start()
    promotion = await replicator.call("POST", f"/v1/volumes/{VOLUME}/promote", {"epoch": 2})
    assert promotion["position"] == last
    print(f"{kills} kills, {load.sent} frames, promote {promotion['took_ms']} ms")
    listening.cancel()


async def test_a_large_replica_is_promoted_in_a_moment(
    brokers: support.Brokers, replicator: ReplicatorProcess
) -> None:
    log = await brokers.log("east")
    await log.create_origin(ORIGIN)
    chain = FrameChain(VOLUME, "east")
    block = random.Random(1).randbytes(1 << 19) + bytes(1 << 19)
    run = [Delta(Op.CREATE, 2, args=(ROOT_ID, b"large", 0o644, 0, 0))]
    for number in range(64):
        frame = chain.frame(
            [*run, write(2, number << 20, block)], frames.Flag.BASE_END if number == 63 else frames.NO_FLAGS
        )
        await log.append(ORIGIN, frame, number)
        run = []
    role = {"role": "follow", "epoch": 1, "leader": "east", "chain": [{"site": "east", "epoch": 1}]}
    await replicator.call("PUT", f"/v1/volumes/{VOLUME}", role)
    last = str(chain.tip.position)
    caught = await replicator.call(
        "POST", f"/v1/volumes/{VOLUME}/catch-up", {"position": last, "timeout_s": 30}
    )
    promotion = await replicator.call("POST", f"/v1/volumes/{VOLUME}/promote", {"epoch": 2})
    print(f"64 MiB caught up in {caught['took_ms']} ms, promoted in {promotion['took_ms']} ms")
    assert promotion["position"] == last
    assert promotion["took_ms"] < 1000
