"""A shared volume at three sites: programs write at all of them, also while the links are cut and while a merging
process is dead, and all directories become one without a word lost (FAULTS.md, row 24).
"""

from __future__ import annotations

import base64
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until
from tests.support.shared_deployments import SITES, VOLUME, Desk

from diffkeeper.domain import errors

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(420)]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    try:
        await started.up(",".join(SITES))
        yield started
    finally:
        await started.stop()


async def test_sites_that_were_cut_off_from_each_other_become_one_again(deployment: Deployment) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    desk = Desk(deployment, seed)
    desk.paths["east"].mkdir()
    for name in ("notes.txt", "data.bin", "renamed.txt", "removed.txt"):
        desk.write("east", name)
    (desk.paths["east"] / "data.bin").write_bytes(b"\0\n" + (desk.paths["east"] / "data.bin").read_bytes())
    for site in SITES:
        await desk.attach(site)
    await desk.converge("all sites have what the first had")

    await cut(deployment)
    desk.write_some(SITES, ("notes.txt", "new.txt"), 12)
    for site in SITES:
        desk.write(site, "data.bin")
        desk.write(site, "notes.txt")
    (desk.paths["west"] / "renamed.txt").rename(desk.paths["west"] / "moved.txt")
    desk.write("east", "renamed.txt")
    (desk.paths["west"] / "removed.txt").unlink()
    desk.write("north", "removed.txt")
    await said_everything(deployment)
    kill_merging_of(deployment, "north")
    desk.write_some(("north",), ("notes.txt", "late.txt"), 4)
    await heal(deployment)

    found = await desk.converge("the sites are one again")
    assert "moved.txt" in found and "renamed.txt" not in found
    assert "removed.txt" in found, "an edit beats a removal that had not seen it"
    conflicts = (await deployment.get(f"/v1/shared/{VOLUME}/conflicts"))["conflicts"]
    waiting = [one for one in conflicts if one["resolved"] is None]
    assert {one["path"] for one in waiting} >= {"data.bin"}
    await resolved_everywhere(deployment, waiting[0]["id"])
    blame = await deployment.get(f"/v1/shared/{VOLUME}/blame?path=notes.txt")
    assert {line["site"] for line in blame["lines"]} >= {"east"}
    await west_is_taken_back(deployment, desk)
    with pytest.raises(errors.Refused) as refused:
        await deployment.post(f"/v1/volumes/{VOLUME}--east/failover", {"to": "west"})
    assert refused.value.reason == "shared-volume"


async def west_is_taken_back(deployment: Deployment, desk: Desk) -> None:
    """Its words go from the notes at every site, and the others' stay."""
    before = set((desk.paths["north"] / "notes.txt").read_text().split())
    path = base64.b64encode(b"notes.txt").decode()
    done = await deployment.post(f"/v1/shared/{VOLUME}/undo", {"path_b64": path, "by": "west"})
    assert done["edits"] > 0

    async def words() -> list[set[str]]:
        return [set((desk.paths[site] / "notes.txt").read_text().split()) for site in SITES]

    wanted = {word for word in before if not word.startswith("west-")}
    assert wanted < before
    await until(words, lambda found: all(one == wanted for one in found), "west's words are gone", 60)


async def cut(deployment: Deployment) -> None:
    for site in SITES:
        await deployment.post(f"/v1/nodes/link-{site}/stop", {"kill": True})


async def heal(deployment: Deployment) -> None:
    for site in SITES:
        await deployment.post(f"/v1/nodes/link-{site}/start")


async def said_everything(deployment: Deployment) -> None:
    """Every site has taken in what its programs did, and published it as far as its own broker."""

    def is_calm(found: dict[str, Any]) -> bool:
        return all(one.get("unpublished") == 0 and one.get("waiting") == 0 for one in found["sites"])

    await until(lambda: deployment.get(f"/v1/shared/{VOLUME}"), is_calm, "the sites are calm", 60)


def kill_merging_of(deployment: Deployment, site: str) -> None:
    """SIGKILL, as the kernel does it when memory runs out."""
    replicators = [
        pid for pid, line in deployment.processes(f"sites/{site}/replicator").items() if "-m" in line
    ]
    children = [child for pid in replicators for child in children_of(pid)]
    merging = [pid for pid in children if b"merging_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert merging, f"{site} has a merging process"
    for pid in merging:
        os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


async def resolved_everywhere(deployment: Deployment, conflict: str) -> None:
    await deployment.post(f"/v1/shared/{VOLUME}/conflicts/{conflict}", {"choice": "both"})

    async def seen() -> list[str | None]:
        found = []
        for site in SITES:
            answer = await deployment.get(f"/v1/shared/{VOLUME}/conflicts?site={site}")
            found += [one["resolved"] for one in answer["conflicts"] if one["id"] == conflict]
        return found

    await until(seen, lambda states: set(states) == {"both"}, "the decision is everywhere", 60)
