"""Storage nodes killed, wiped and rotten, and the repair service killed at any moment: every sealed frame comes back."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from tests.support import framing, made_logs, replays
from tests.support.storage_rig import ORIGIN, StorageRig

from diffkeeper.domain import frames, segments
from diffkeeper_repair import rescue
from diffkeeper_replicator import materialise, verify

pytestmark = pytest.mark.disaster

SEED = random.SystemRandom().randrange(1 << 32)


@pytest.fixture
def rng() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


@pytest.fixture
async def ten(tmp_path: Path) -> AsyncIterator[StorageRig]:
    async for rig in _rig(tmp_path, 10, "2+8"):
        yield rig


@pytest.fixture
async def five(tmp_path: Path) -> AsyncIterator[StorageRig]:
    async for rig in _rig(tmp_path, 5, "2+3"):
        yield rig


async def _rig(under: Path, nodes: int, geometry: str) -> AsyncIterator[StorageRig]:
    rig = StorageRig(under / "rig", nodes, geometry, seal_age_s=0.3, grace_s=1.0)
    try:
        await rig.start()
        yield rig
    finally:
        await rig.stop()


def a_log(rng: random.Random, count: int) -> list[frames.Frame]:
    """Frames of a little program, which can be replayed."""
    made = made_logs.MadeLog(rng.randrange(1 << 16) for _ in range(60 * count))
    chain = made_logs.FrameChain()
    deltas = made.deltas()
    return [chain.frame(itertools.islice(deltas, 12)) for _ in range(count)]


async def seal_in_parts(rig: StorageRig, log: list[frames.Frame], parts: int) -> list[bytes]:
    wires: list[bytes] = []
    await rig.start_repair()
    await rig.ready()
    size = -(-len(log) // parts)
    for at in range(0, len(log), size):
        wires += await rig.append(log[at : at + size])
        await rig.call("POST", "/v1/seal", {"timeout_s": 30})
    return wires


def rescued(target: Path) -> list[bytes]:
    wires: list[bytes] = []
    for path in sorted((target / "orders" / "log" / "east").iterdir()):
        data = path.read_bytes()
        wires += segments.decode(data, blake3(data).digest()).wires
    return wires


async def test_every_two_of_ten_nodes_give_everything_back_with_no_index(
    ten: StorageRig, tmp_path: Path, rng: random.Random
) -> None:
    log = a_log(rng, 30)
    wires = await seal_in_parts(ten, log, 3)
    (tmp_path / "expected").mkdir()
    verify.replay("orders", log, tmp_path / "expected")
    expected = replays.snapshot(tmp_path / "expected")
    await ten.kill_repair()
    exported = {name: await ten.export(name, tmp_path / "exported" / name) for name in ten.names}
    for number, kept in enumerate(itertools.combinations(ten.names, 2)):
        target = tmp_path / f"back-{number}"
        report = await rescue.rescue([str(exported[name]) for name in kept], target, None)
        assert report["volumes"][0]["whole"], (kept, report)
        assert rescued(target) == wires, kept
        materialise.materialise("orders", target / "orders" / "log", target / "tree")
        assert replays.snapshot(target / "tree") == expected, kept

    # A flipped bit in one of three survivors changes nothing; in one of two it is told, and no wrong byte comes out.
    victim, *others = rng.sample(ten.names, 3)
    for file in exported[victim].iterdir():
        data = bytearray(file.read_bytes())
        data[rng.randrange(510, len(data)) if ".m." not in file.name else 50] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))
    report = await rescue.rescue(
        [str(exported[name]) for name in (victim, *others)], tmp_path / "three", None
    )
    assert report["volumes"][0]["whole"] and rescued(tmp_path / "three") == wires
    report = await rescue.rescue(
        [str(exported[name]) for name in (victim, others[0])], tmp_path / "two", None
    )
    assert not report["volumes"][0]["whole"] and len(report["volumes"][0]["lost"]) == 3
    assert report["volumes"][0]["lost"][0]["first"] == "1.1"
    assert not list((tmp_path / "two").rglob("*.dkseg"))

    # The same from the stores of two nodes as their death left them.
    for name in ten.names:
        await ten.kill_node(name)
    report = await rescue.rescue(
        [str(ten.under / name) for name in rng.sample(ten.names, 2)], tmp_path / "dead", None
    )
    assert report["volumes"][0]["whole"], report
    assert rescued(tmp_path / "dead") == wires


async def test_a_repair_service_killed_again_and_again_loses_nothing_and_converges(
    five: StorageRig, rng: random.Random
) -> None:
    chain = framing.chain(size=20_000)
    wires: list[bytes] = []
    for _ in range(5):
        await five.start_repair()
        wires += await five.append(itertools.islice(chain, rng.randrange(1, 12)))
        if rng.random() < 0.5:
            victim = rng.choice(five.names)
            await five.kill_node(victim)
            if rng.random() < 0.6:
                five.wipe(victim)
            await five.restart_node(victim)
        if rng.random() < 0.7:
            await five.ready()
        await asyncio.sleep(rng.random() * 1.2)
        await five.kill_repair()
    await five.start_repair()
    await five.ready()
    await five.until_well("all is mended")
    scrubbed = await five.call("POST", "/v1/scrub")
    assert scrubbed["damages"] == []
    found = [await five.frame(sequence) for sequence in range(1, len(wires) + 1)]
    assert found == wires


async def test_rot_in_the_block_files_of_nodes_is_found_and_repaired(
    five: StorageRig, rng: random.Random
) -> None:
    wires = await seal_in_parts(five, list(framing.chain(40, size=5000)), 4)
    for victim in rng.sample(five.names, 2):
        await five.kill_node(victim)
        assert five.rot(victim, rng, 6)
        await five.restart_node(victim)
    await five.call("POST", "/v1/scrub")
    await five.until_well("what rotted is made anew")
    known = await five.call("GET", "/v1/damages")
    assert known["open"] == [] and known["past"], "the rot was noticed"
    assert (await five.call("POST", "/v1/scrub"))["damages"] == []
    assert [await five.frame(sequence) for sequence in range(1, 41)] == wires


async def test_nodes_lost_one_after_the_other_are_made_up_for(five: StorageRig, rng: random.Random) -> None:
    wires = await seal_in_parts(five, list(framing.chain(30, size=3000)), 2)
    # More than the geometry bears at once, but never more than three at a time.
    for victim in rng.sample(five.names, 5):
        await five.kill_node(victim)
        five.wipe(victim)
        await five.restart_node(victim)
        await five.until_well(f"{victim} is filled again")
    assert [await five.frame(sequence) for sequence in range(1, 31)] == wires
    await five.kill_repair()
    for victim in rng.sample(five.names, 3):
        await five.kill_node(victim)
    await five.start_repair()
    await five.ready()
    assert [await five.frame(sequence) for sequence in range(1, 31)] == wires
    health = await five.call("GET", "/v1/health")
    assert not health["ok"]
    assert health["volumes"][0]["lost"] == []
    assert ORIGIN.volume == health["volumes"][0]["volume"]
