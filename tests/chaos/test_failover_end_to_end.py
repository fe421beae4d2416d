"""Failover with real programs and processes: nothing acknowledged is lost, and one site writes at a time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until

from diffkeeper.domain import errors

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west")
        yield started
    finally:
        await started.stop()


async def start_writer(deployment: Deployment, lines: int = 20) -> None:
    await deployment.run("lines", "east", deployment.base / "data", WRITER)

    async def acknowledged() -> int:
        return last_acknowledged(deployment)

    await until(acknowledged, lambda number: number >= lines, f"{lines} lines are acknowledged")


def last_acknowledged(deployment: Deployment) -> int:
    whole = (deployment.base / "lines.out").read_text().rpartition("\n")[0]
    return int(whole.split("\n")[-1]) if whole else 0


def check_lines(path: str, at_least: int) -> int:
    """Lines are 1, 2, 3 ... without a gap, and all that were acknowledged are there; how many."""
    numbers = (Path(path) / "lines").read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    assert len(numbers) >= at_least
    return len(numbers)


async def fail_over(deployment: Deployment, **asked: Any) -> dict[str, Any]:
    operation: dict[str, Any] = await deployment.post("/v1/volumes/lines/failover?wait_s=60", asked)
    assert operation["state"] == "done", operation
    return operation


async def writes_more(deployment: Deployment, path: str, than: int) -> None:
    async def count() -> int:
        return (Path(path) / "lines").read_bytes().count(b"\n")

    await until(count, lambda lines: lines > than, "the program writes on")


async def test_site_killed_under_load_loses_no_acknowledged_line_and_follows_when_it_returns(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    await deployment.post("/v1/sites/east/stop", {"kill": True})
    assert deployment.programs[0].wait(20) == -signal.SIGKILL
    acknowledged = last_acknowledged(deployment)
    leaderless = await deployment.volume("lines")
    assert (leaderless["state"], leaderless["leader_state"]) == ("leaderless", "stopped")
    assert leaderless["loss_bound"]["acknowledged_writes"] == 0

    operation = await fail_over(deployment, to="west", durability="site")
    assert not operation["planned"]
    path = operation["result"]["path"]
    lines = check_lines(path, acknowledged)
    await writes_more(deployment, path, lines)
    timings = operation["timings_ms"]
    assert {
        "detect",
        "promise",
        "catch_up",
        "promote",
        "attach",
        "start",
        "decision_to_promoted",
    } <= timings.keys()

    await deployment.post("/v1/sites/east/start")

    def follows(found: dict[str, Any]) -> bool:
        east = next(site for site in found["sites"] if site["site"] == "east")
        return (east["role"], east["base_complete"], east["state"]) == ("follow", True, "following")

    found = await until(lambda: deployment.volume("lines"), follows, "the old leader follows", 120)
    assert found["leader"] == "west"
    east = next(site for site in found["sites"] if site["site"] == "east")
    assert (east["path"], found["orphans"]) == (str(deployment.base / "data"), []), "in its own directory"
    check_lines(str(deployment.base / "data"), acknowledged)
    assert (await deployment.post("/v1/volumes/lines/verify"))["ok"]


async def test_planned_failover_there_and_back_keeps_every_line_and_the_program_running(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    there = await fail_over(deployment, to="west")
    assert there["planned"]
    assert deployment.programs[0].wait(20) == 0, "the program was asked to stop, and did"
    lines = check_lines(there["result"]["path"], last_acknowledged(deployment))
    await writes_more(deployment, there["result"]["path"], lines + 20)

    back = await fail_over(deployment, to="east")
    assert back["result"]["path"] == str(deployment.base / "data"), "a handover keeps the directory"
    more = check_lines(back["result"]["path"], lines + 20)
    await writes_more(deployment, back["result"]["path"], more)
    found = await deployment.volume("lines")
    assert [(reign["site"], reign["epoch"]) for reign in found["chain"]] == [
        ("east", 1),
        ("west", 2),
        ("east", 3),
    ]
    assert found["orphans"] == []


@pytest.mark.parametrize("phase", ["prepare", "handover", "promote", "attach", "start"])
async def test_failover_whose_control_is_killed_is_completed_by_the_next_one(
    deployment: Deployment, phase: str
) -> None:
    await start_writer(deployment)
    record = deployment.dir / "control" / "operations" / "lines-2.jsonl"
    asking = asyncio.create_task(deployment.post("/v1/volumes/lines/failover", {"to": "west"}))

    async def reached() -> str:
        """The phase of the last whole line of the operation's record."""
        text = record.read_text().rpartition("\n")[0].rpartition("\n")[2] if record.exists() else ""
        return str(json.loads(text)["machine"]["phase"]) if text else ""

    order = ["prepare", "handover", "promise", "catch_up", "promote", "attach", "start", "follow", "done"]
    await until(
        reached, lambda now: now != "" and order.index(now) >= order.index(phase), phase, pause_s=0.001
    )
    deployment.kill_control()
    killed_in = await reached()
    await asyncio.gather(asking, return_exceptions=True)

    await deployment.up()
    operation = await deployment.get("/v1/operations/lines-2?wait_s=60")
    assert operation["state"] == "done", f"killed in {killed_in}: {operation}"
    found = await deployment.volume("lines")
    assert (found["leader"], found["epoch"], found["operation"]) == ("west", 2, None)
    lines = check_lines(operation["result"]["path"], last_acknowledged(deployment))
    await writes_more(deployment, operation["result"]["path"], lines)
    assert len(writers(deployment)) == 2, "one program and its wrapper, at the new leader"


async def test_silent_leader_needs_force_and_is_fenced_and_relieved_when_it_speaks_again(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    (agent,) = [one for one in (await deployment.site("east"))["processes"] if one["name"] == "agent"]
    os.kill(agent["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(errors.Refused) as refused:
            await deployment.post("/v1/volumes/lines/failover", {"to": "west"})
        assert refused.value.reason == "leader-unreachable"
        assert refused.value.facts["acknowledged_writes"] == 0
        acknowledged = last_acknowledged(deployment)
        operation = await fail_over(deployment, to="west", force=True, durability="site")
    finally:
        os.kill(agent["pid"], signal.SIGCONT)
    lines = check_lines(operation["result"]["path"], max(acknowledged, last_acknowledged(deployment)))
    # The old program is ended, for its writes count no more: by SIGTERM, which it may well obey, else by SIGKILL.
    deployment.programs[0].wait(60)
    assert last_acknowledged(deployment) <= lines, "nothing was acknowledged by the fenced leader"
    await writes_more(deployment, operation["result"]["path"], lines)


async def test_what_cannot_be_done_is_refused_with_its_reason_and_changes_nothing(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    data = deployment.base / "data"
    (data / "file").write_text("x")
    wishes: list[tuple[str, dict[str, Any], str]] = [
        ("lines", {"site": "east", "path": str(data)}, "volume-held"),
        ("lines", {"site": "west", "path": None}, "volume-held"),
        ("more", {"site": "north", "path": str(data)}, "unknown-site"),
        ("more", {"site": "east", "path": str(data)}, "path-captured"),
        ("more", {"site": "east", "path": str(data / "below")}, "path-missing"),
        ("more", {"site": "east", "path": str(data / "file")}, "path-not-directory"),
        ("more", {"site": "east", "path": str(deployment.base)}, "path-overlaps"),
        ("more", {"site": "east", "path": str(deployment.dir)}, "path-overlaps"),
        ("more", {"site": "east", "path": str(data), "mode": "shared"}, "path-captured"),
        ("No!", {"site": "east", "path": str(data)}, "bad-name"),
    ]
    for volume, body, reason in wishes:
        with pytest.raises(errors.Refused) as refused:
            await deployment.post(f"/v1/volumes/{volume}/run", {**body, "argv": ["true"]})
        assert refused.value.reason == reason, (volume, body, refused.value.message)
    for to, reason in (("east", "already-leads"), ("north", "unknown-site")):
        with pytest.raises(errors.Refused) as refused:
            await deployment.post("/v1/volumes/lines/failover", {"to": to})
        assert refused.value.reason == reason
    with pytest.raises(errors.NotFound):
        await deployment.post("/v1/volumes/none/failover", {"to": "west"})
    assert deployment.programs[0].poll() is None
    status = await deployment.get("/v1/status")
    assert [volume["volume"] for volume in status["volumes"]] == ["lines"]


async def test_failover_whose_target_dies_gives_the_volume_back_to_its_leader(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    asking = asyncio.create_task(
        deployment.post("/v1/volumes/lines/failover?wait_s=60", {"to": "west", "timeout_s": 3})
    )
    record = deployment.dir / "control" / "operations" / "lines-2.jsonl"

    async def handing_over() -> bool:
        return record.exists() and b'"phase":"handover"' in record.read_bytes()

    await until(handing_over, bool, "the handover begins", pause_s=0.001)
    await deployment.post("/v1/sites/west/stop", {"kill": True})
    operation = await asking
    assert operation["state"] == "rolled-back", operation
    await deployment.post("/v1/sites/west/start")
    found = await deployment.volume("lines")
    assert (found["leader"], found["operation"]) == ("east", None)
    lines = check_lines(found["path"], last_acknowledged(deployment))
    await writes_more(deployment, found["path"], lines + 5)
    assert len(writers(deployment)) == 2, "one program and its wrapper, where they were"


async def test_volume_at_rest_moves_there_and_back_at_once_and_is_confirmed_before_it_is_written(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    deployment.programs[0].terminate()
    deployment.programs[0].wait()
    await deployment.post("/v1/volumes/lines/release", {"exit_code": 0})
    for to in ("west", "east"):
        operation = await fail_over(deployment, to=to)
        assert operation["planned"]
        assert operation["result"]["pid"] is None, "a program that did not run is not started"
        receipt = await deployment.post("/v1/volumes/lines/sync", {"level": "remote", "timeout_s": 20})
        assert receipt["position"] == operation["result"]["position"]
    verified = await deployment.post("/v1/volumes/lines/verify")
    assert (verified["ok"], verified["source"]["ok"]) == (True, True), verified


async def test_program_outlives_its_agent_and_goes_on_once_the_next_one_has_its_order(
    deployment: Deployment,
) -> None:
    await start_writer(deployment)
    (agent,) = [one for one in (await deployment.site("east"))["processes"] if one["name"] == "agent"]
    os.kill(agent["pid"], signal.SIGKILL)
    before = last_acknowledged(deployment)

    async def acknowledged() -> int:
        return last_acknowledged(deployment)

    await until(acknowledged, lambda number: number > before + 20, "fsyncs return again", 90)
    assert deployment.programs[0].poll() is None
    await deployment.post("/v1/sites/east/stop", {"kill": True})
    operation = await fail_over(deployment, to="west", durability="site")
    check_lines(operation["result"]["path"], last_acknowledged(deployment))


async def test_leader_that_comes_back_before_anybody_took_over_leads_on(deployment: Deployment) -> None:
    await start_writer(deployment)
    await deployment.post("/v1/sites/east/stop", {"kill": True})
    before = last_acknowledged(deployment)
    await deployment.post("/v1/sites/east/start")
    data = str(deployment.base / "data")
    check_lines(data, before)
    await start_writer(deployment, before + 20)
    operation = await fail_over(deployment, to="west")
    assert operation["planned"]
    assert check_lines(operation["result"]["path"], last_acknowledged(deployment)) > before
    found = await deployment.volume("lines")
    assert [reign["epoch"] for reign in found["chain"]] == [1, 2]


def writers(deployment: Deployment) -> list[int]:
    return [pid for pid, line in deployment.processes().items() if "line_writer.py" in line]
