"""A deployment's processes: started, adopted, started again, killed with their site, and gone at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, environment, until

from diffkeeper import __version__

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(240)]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    try:
        yield started
    finally:
        await started.stop()


async def pids(deployment: Deployment) -> dict[str, int]:
    sites = (await deployment.get("/v1/status"))["sites"]
    return {
        f"{site['site']} {process['name']}": process["pid"] for site in sites for process in site["processes"]
    }


async def test_children_of_a_killed_control_are_adopted_and_an_ordered_stop_leaves_nothing(
    deployment: Deployment,
) -> None:
    await deployment.up("east,west")
    before = await pids(deployment)
    assert len(before) == 6
    assert (deployment.dir / "token").stat().st_mode & 0o077 == 0

    busy = deployment.launch()
    assert busy.wait(60) == 6, "a busy directory is refused"
    assert "reason=dir-busy" in deployment.log()
    assert deployment.note()["control"]["address"] in deployment.log()

    deployment.kill_control()
    for pid in before.values():
        os.kill(pid, 0)
    await deployment.up()
    assert await pids(deployment) == before, "nothing was started twice"
    versions = [set(site["versions"].values()) for site in (await deployment.get("/v1/status"))["sites"]]
    assert versions == [{__version__}] * 2

    assert await deployment.shut_down() == 0
    assert deployment.processes() == {}
    assert deployment.note()["control"] is None


async def test_child_that_control_had_no_time_to_note_is_replaced_and_not_doubled(
    deployment: Deployment,
) -> None:
    await deployment.up()
    before = await pids(deployment)
    deployment.kill_control()
    note = deployment.note()
    del note["sites"]["west"]["processes"]["agent"]
    (deployment.dir / "deployment.json").write_text(json.dumps(note))
    await deployment.up()
    after = await pids(deployment)
    assert {name for name in after if after[name] != before[name]} == {"west agent"}
    assert before["west agent"] not in deployment.processes()


async def test_child_that_dies_is_started_again_at_the_same_address_and_status_says_so(
    deployment: Deployment,
) -> None:
    await deployment.up()

    async def look() -> dict[str, Any]:
        processes: list[dict[str, Any]] = (await deployment.site("west"))["processes"]
        return next(one for one in processes if one["name"] == "replicator")

    replicator = await look()
    os.kill(replicator["pid"], signal.SIGKILL)
    again = await until(look, lambda one: one["state"] == "running" and one["restarts"] == 1, "it runs again")
    assert again["pid"] != replicator["pid"]
    assert again["address"] == replicator["address"]
    assert again["last_exit"] == -signal.SIGKILL


async def test_killed_site_has_no_process_left_not_even_a_daemon_and_stays_down_until_started(
    deployment: Deployment, tmp_path: Path
) -> None:
    await deployment.up()
    gate = str(deployment.dir / "sites" / "east" / "capture" / "gate.sock")
    # A program of the site that left its parents, as daemons do.
    sleeper = [sys.executable, "-c", "import time; time.sleep(1000)"]
    daemon = deployment.start_program(sleeper, {**environment(), "DIFFKEEPER_GATE": gate}, "daemon.out")
    west = {name: pid for name, pid in (await pids(deployment)).items() if name.startswith("west")}
    stopped = await deployment.post("/v1/sites/east/stop", {"kill": True})
    assert stopped["state"] == "stopped"
    assert deployment.processes("sites/east") == {}
    assert daemon.wait(10) == -signal.SIGKILL
    deployment.kill_control()
    await deployment.up()
    assert (await deployment.site("east"))["state"] == "stopped", "also the next control leaves it down"
    assert {name: pid for name, pid in (await pids(deployment)).items() if name.startswith("west")} == west
    ports = {key: value for key, value in deployment.note()["sites"]["east"].items() if key.endswith("port")}
    await deployment.post("/v1/sites/east/start")
    assert (await deployment.site("east"))["state"] == "alive"
    again = deployment.note()["sites"]["east"]
    assert {key: again[key] for key in ports} == ports


async def test_directory_that_holds_something_else_is_refused_and_left_alone(deployment: Deployment) -> None:
    deployment.dir.mkdir()
    (deployment.dir / "letters").write_text("mine")
    assert deployment.launch().wait(60) == 6
    assert "reason=dir-not-empty" in deployment.log()
    assert (deployment.dir / "letters").read_text() == "mine"
