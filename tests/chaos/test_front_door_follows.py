"""Clients of a front door while their program moves: in order, with control killed, and from a dead site."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until

from diffkeeper import nats_server
from diffkeeper.domain import errors
from dkctl.bench import failover as bench
from dkctl.bench.front_door import Load

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

RATE = 20


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west")
        yield started
    finally:
        await started.stop()


async def fail_over(deployment: Deployment, **asked: Any) -> dict[str, Any]:
    operation: dict[str, Any] = await deployment.post("/v1/volumes/requests/failover?wait_s=60", asked)
    assert operation["state"] == "done", operation["error"]
    return operation


async def ends(deployment: Deployment, operation: str) -> dict[str, Any]:
    found: dict[str, Any] = await until(
        lambda: deployment.get(f"/v1/operations/{operation}"),
        lambda now: now["state"] != "running",
        "the operation ends",
    )
    return found


async def more_answers(load: Load, count: int) -> None:
    """Until so many more were answered than now."""
    enough = len(load.acknowledged) + count

    async def answered() -> int:
        return len(load.acknowledged)

    await until(answered, lambda now: now >= enough, "clients are answered")


def check_kept(path: str, load: Load) -> None:
    kept = set((Path(path) / "appended").read_text().split("\n"))
    missing = [number for number in load.acknowledged if str(number) not in kept]
    assert not missing, f"acknowledged and lost: {missing}"


async def test_no_request_fails_in_planned_moves_and_none_acknowledged_is_lost_in_a_forced_one(
    deployment: Deployment,
) -> None:
    port = nats_server.free_port("127.0.0.1")
    door = {"listen": str(port), "hold_ms": 60_000}
    await deployment.run("requests", "east", deployment.base / "data", bench.http_program(), front_door=door)
    load = Load(port, RATE)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            await more_answers(load, 20)
            await fail_over(deployment, to="west")
            await more_answers(load, 20)

            # Control dies while the door holds, and the next one ends what it began.
            begun = await deployment.post("/v1/volumes/requests/failover", {"to": "east"})
            await deployment_holds(deployment, begun["id"])
            deployment.kill_control()
            await deployment.up()
            ended = await ends(deployment, begun["id"])
            assert ended["state"] == "done", ended["error"]
            await more_answers(load, 20)
            assert [one.status for one in load.answers if one.status != 200] == []
            check_kept(str(deployment.base / "data"), load)

            # Its site dies with requests under way: what was not sent yet waits for the next leader.
            await deployment.post("/v1/sites/east/stop", {"kill": True})
            operation = await fail_over(deployment, to="west", durability="site")
            await more_answers(load, 20)
        finally:
            load.stop()
    check_kept(operation["result"]["path"], load)
    told = {one.status for one in load.answers}
    assert told <= {200, 502}, "a request that was lost with its site is told so, not dropped"
    shown = (await deployment.volume("requests"))["front_door"]
    assert (shown["now"]["state"], shown["now"]["target"]["site"]) == ("open", "west")
    assert shown["now"]["lost"] == sum(one.status == 502 for one in load.answers)

    # The door itself dies: it is started again, and told where to lead.
    os.kill(deployment.note()["door"]["process"]["pid"], signal.SIGKILL)
    again = Load(port, RATE)
    async with asyncio.TaskGroup() as group:
        group.create_task(again.run())
        try:
            await more_answers(again, 5)
        finally:
            again.stop()
    assert await deployment.shut_down() == 0
    doors = [line for line in deployment.processes().values() if "front_door" in line]
    assert doors == [], "it ends with its deployment"


async def deployment_holds(deployment: Deployment, operation: str) -> None:
    """Until the operation has come to where requests are held, or beyond."""

    async def phase() -> str:
        found: str = (await deployment.get(f"/v1/operations/{operation}"))["phase"]
        return found

    await until(phase, lambda name: name != "prepare", "the handover has begun", pause_s=0.002)


async def test_door_whose_address_is_taken_stops_the_run_before_anything_is_captured(
    deployment: Deployment,
) -> None:

    taken = int(deployment.note()["control"]["address"].rpartition(":")[2])
    with pytest.raises(errors.Refused) as refused:
        await deployment.run(
            "requests", "east", deployment.base / "data", ["true"], front_door={"listen": str(taken)}
        )
    assert refused.value.reason == "listen-taken"
    assert (await deployment.get("/v1/status"))["volumes"] == []
