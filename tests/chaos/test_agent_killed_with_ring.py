"""The agent killed while its ring goes on in the kernel: what fitted in is not missed, what did not is read again."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import name_shuffler
from tests.support.brokers import Brokers
from tests.support.capture_rig import CaptureRig, digest

from diffkeeper import pins
from diffkeeper.domain import deltas
from diffkeeper_capture.bpf_probe import BpfProbe

pytestmark = pytest.mark.disaster

WHY_NOT = BpfProbe.why_not()
MIB = 1024 * 1024


@pytest.fixture
async def rig(tmp_path: Path, brokers: Brokers) -> AsyncIterator[CaptureRig]:
    if WHY_NOT is not None:
        pytest.skip(WHY_NOT)
    made = CaptureRig(tmp_path, brokers)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
        print(made.agent_log() if (tmp_path / "agent.log").exists() else "")


async def causes(rig: CaptureRig) -> list[object]:
    return [
        delta.args[0]
        for frame in await rig.stream()
        for delta in frame.columns()
        if delta.op == deltas.Op.GAP
    ]


async def test_an_agent_killed_under_load_goes_on_without_a_gap(rig: CaptureRig) -> None:
    seed = int(os.environ.get("DK_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    (rig.volume / "old").write_bytes(os.urandom(100_000))
    await rig.start_agent(ring_bytes=16 * MIB)
    await rig.attach()
    await rig.until_capturing()
    programs = [
        rig.run(sys.executable, name_shuffler.__file__, str(rig.volume / "a"), str(seed)),
    ]
    for _ in range(5):
        assert programs[0].stdout is not None
        await asyncio.to_thread(programs[0].stdout.readline)
        await asyncio.sleep(chance.uniform(0.0, 0.4))
        await rig.kill_agent()
        (rig.volume / f"alone-{chance.random()}").write_text("written while no agent lived")
        await rig.start_agent(ring_bytes=16 * MIB)
        await rig.attach()
        await rig.until_capturing()
    for program in programs:
        _, said = await asyncio.to_thread(program.communicate, "x", 60)
        assert program.returncode == 0, said
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    status = await rig.status()
    assert await causes(rig) == []
    assert (status["gaps"]["total"], status["lost_records"]) == (0, 0)
    assert await rig.replayed() == digest(rig.volume)


async def test_what_overflowed_while_no_agent_lived_is_a_gap_and_is_read_again(rig: CaptureRig) -> None:
    (rig.volume / "quiet").write_bytes(os.urandom(MIB))
    await rig.start_agent(ring_bytes=MIB)
    await rig.attach()
    await rig.until_capturing()
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    await rig.kill_agent()
    for number in range(40):
        (rig.volume / f"burst-{number % 10}").write_bytes(os.urandom(100_000))
    await rig.start_agent(ring_bytes=MIB)
    await rig.attach()
    await rig.until_capturing()
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    assert "lost-records" in await causes(rig)
    assert "agent-restart" not in await causes(rig)
    assert await rig.replayed() == digest(rig.volume)
    quiet = sum(
        len(delta.data)
        for frame in await rig.stream()
        for delta in frame.columns()
        if len(delta.data or b"") == MIB
    )
    assert quiet <= MIB, "a file that nobody touched is not read again"


async def test_an_ordered_stop_leaves_nothing_in_the_kernel(rig: CaptureRig) -> None:
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    await rig.kill_agent()
    assert pins.remove(rig.gate.parent), "a killed agent leaves its probe to a successor"
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    assert rig.agent is not None
    rig.agent.terminate()
    assert await asyncio.to_thread(rig.agent.wait, 20) == 0
    assert not pins.remove(rig.gate.parent)
    assert not (rig.gate.parent / pins.OWN_MOUNT).exists()


BURST = """
import os, sys
with open(sys.argv[1] + "/burst", "wb", buffering=0) as file:
    for n in range(int(sys.argv[2]) * 256):
        file.write(n.to_bytes(4, "little") * 1024)
        if n % 64 == 0: open(f"{sys.argv[1]}/small-{n % 640}", "w").close()
"""


@pytest.mark.parametrize("durability", ["observe", "site"])
async def test_a_burst_of_many_rings_is_exact_under_a_hard_limit(rig: CaptureRig, durability: str) -> None:
    await rig.start_agent(ring_bytes=2 * MIB)
    await rig.attach(durability=durability)
    await rig.until_capturing()
    program = rig.run(sys.executable, "-c", BURST, str(rig.volume), "32", options=("--hard-limit",))
    _, said = await asyncio.to_thread(program.communicate, None, 60)
    assert program.returncode == 0, said
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    status = await rig.status()
    assert (status["gaps"]["total"], status["lost_records"]) == (0, 0)
    assert await rig.replayed() == digest(rig.volume)
    assert (await rig.call("GET", "/v1/status"))["presses"] > 0, (
        "the ring was never in danger: no test of the limit"
    )
