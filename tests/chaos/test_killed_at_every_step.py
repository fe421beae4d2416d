"""A volume is moved to and fro, and at each step of a move something is killed: the coordinator, a broker, a whole site.
Afterwards, and after asking again where that is needed, one site leads, its program writes, and every line whose fsync
had returned is there.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.support.deployments import Deployment, until

from diffkeeper import http
from diffkeeper.domain import errors

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(400)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]
STEPS = ("prepare", "handover", "promise", "catch_up", "promote", "attach", "start", "follow")
VICTIMS = ("control", "broker of the leader", "broker of the target", "the leader", "the target")
ENDED = ("done", "partial", "rolled-back", "failed")


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west")
        await started.run("lines", "east", tmp_path / "data", WRITER)
        yield started
    finally:
        await started.stop()


async def test_whatever_is_killed_at_a_step_one_site_leads_and_nothing_acknowledged_is_lost(
    deployment: Deployment,
) -> None:
    seed = int(os.environ.get("DK_SEED") or random.randrange(1 << 32))
    print(f"DK_SEED={seed}")
    chance = random.Random(seed)
    # Each victim once, each at another step.
    for victim, step in zip(VICTIMS, chance.sample(STEPS, len(VICTIMS)), strict=True):
        print(f"{victim} is killed at {step}")
        await settle(deployment)
        found = await deployment.volume("lines")
        leader, target = found["leader"], "west" if found["leader"] == "east" else "east"
        operation = await deployment.post("/v1/volumes/lines/failover", {"to": target, "grace_s": 5})
        await reach(deployment, operation["id"], step)
        await kill(deployment, victim, leader, target)
        await asyncio.sleep(chance.uniform(0, 2))
        # Behind the point of no return a move waits for its target, so what is down is started while it goes on.
        await start_what_is_down(deployment)
        await until(lambda: deployment.volume("lines"), lambda one: one["operation"] is None, "it has ended")
        await settle(deployment)
        await go_on(deployment)
        acknowledged = highest_acknowledged(deployment)
        await has_all(deployment, acknowledged)
    chain = (await deployment.volume("lines"))["chain"]
    epochs = [reign["epoch"] for reign in chain]
    assert epochs == sorted(set(epochs)), "an epoch is given once"


async def test_a_replica_that_was_let_go_for_a_promotion_nobody_heard_of_is_built_anew(
    deployment: Deployment,
) -> None:
    await settle(deployment)
    port = deployment.note()["sites"]["west"]["replicator_port"]
    url = f"http://127.0.0.1:{port}/v1/volumes/lines/promote"
    token = (deployment.dir / "token").read_text().strip()
    async with aiohttp.ClientSession() as session:
        await http.call(session, "POST", url, token=token, body={"epoch": 1})
    await until(lambda: deployment.volume("lines"), lambda one: not follows(one), "the directory is let go")
    await settle(deployment)
    await go_on(deployment)
    await has_all(deployment, highest_acknowledged(deployment))
    assert "why=directory-left" in deployment.log()


async def reach(deployment: Deployment, operation: str, step: str) -> None:
    """Until the record says that the step is under way, or all is over."""
    path = deployment.dir / "control" / "operations" / f"{operation}.jsonl"

    async def phase() -> str:
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
        return str(msgspec.json.decode(lines[-1])["machine"]["phase"])

    order = [*STEPS, *ENDED]
    await until(
        phase,
        lambda now: now not in order or order.index(now) >= order.index(step),
        f"step {step} is reached",
        pause_s=0.001,
    )


async def kill(deployment: Deployment, victim: str, leader: str, target: str) -> None:
    match victim:
        case "control":
            deployment.kill_control()
            await deployment.up()
        case "the leader" | "the target":
            site = leader if victim == "the leader" else target
            await deployment.post(f"/v1/sites/{site}/stop", {"kill": True})
        case _:
            site = leader if victim == "broker of the leader" else target
            found = await deployment.site(site)
            pids = [process["pid"] for process in found["processes"] if process["node"] and process["pid"]]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


async def settle(deployment: Deployment) -> None:
    """What an operator does: start what is down, and the program where the volume is led."""
    await start_what_is_down(deployment)
    deadline = time.monotonic() + 120
    while True:
        found = await until(
            lambda: deployment.volume("lines"), lambda one: one["operation"] is None, "nothing moves"
        )
        running = bool((found["program"] or {}).get("running"))
        if running and follows(found):
            return
        assert time.monotonic() < deadline, f"it does not settle: {found}"
        if not running:
            await ask_again(deployment, found)
        await asyncio.sleep(0.2)


async def start_what_is_down(deployment: Deployment) -> None:
    for site in ("east", "west"):
        await deployment.post(f"/v1/sites/{site}/start")


def follows(found: dict[str, Any]) -> bool:
    others = [site for site in found["sites"] if site["site"] != found["leader"]]
    return all(site["role"] == "follow" and site["base_complete"] for site in others)


async def ask_again(deployment: Deployment, found: dict[str, Any]) -> None:
    """The program may have ended with its site: run it again where the volume is led."""
    try:
        await deployment.run("lines", found["leader"], Path(found["path"]), WRITER)
    except (errors.Refused, errors.Transient):
        return  # it is being started, or its site comes back: looked at again


async def go_on(deployment: Deployment) -> None:
    async def written() -> int:
        path = Path((await deployment.volume("lines"))["path"]) / "lines"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    before = await written()
    await until(written, lambda count: count > before + 10, "lines are written")


def highest_acknowledged(deployment: Deployment) -> int:
    """The last number that any of the programs said after its fsync."""
    said = [*deployment.base.glob("lines.out"), *deployment.dir.glob("sites/*/capture/programs/*")]
    numbers = [
        int(word)
        for path in said
        if path.is_file()
        for word in path.read_bytes().rpartition(b"\n")[0].split()
        if word.isdigit()
    ]
    return max(numbers, default=0)


async def has_all(deployment: Deployment, acknowledged: int) -> None:
    path = Path((await deployment.volume("lines"))["path"]) / "lines"
    numbers = path.read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    assert len(numbers) >= acknowledged
