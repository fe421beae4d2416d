"""Rounds of faults against three sites with leases, on a network of their own: ``make chaos``, ``make chaos SEED=17 ROUNDS=20``.

``FAULTS=deaf,mute`` draws only among these. A program writes at level ``remote`` all the time. Each round injects one fault,
waits until everything is well and acknowledged again, and gives one row. At the end the checker judges the histories, every
site's directory must be the leader's to the byte, and the chains are verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import record_checker, site_networks, small_disks
from tests.support.deployments import Deployment, until
from tests.support.fault_injector import Fault, Injector, is_whole

from diffkeeper_control import directory_digests

SITES = ["east", "west", "north"]
VOLUME = "records"
WRITER = Path(__file__).parents[1] / "support" / "record_writer.py"
# Long enough that a busy machine does not look like a dead one.
TTL_MS = 2500
# A link that was cut without a word is given up by the brokers after three silent pings of 10 s.
RECOVER_S = 150.0
ROUNDS, LONGEST_S = 12, 12.0
MORE = 20
DISK_BYTES = 192 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    fault: str
    site: str
    leaders: str
    since_ns: int
    until_ns: int


class Rounds:
    """A deployment under faults. ``rows`` is what happened so far."""

    def __init__(self, deployment: Deployment, network: site_networks.SiteNetwork) -> None:
        self.deployment = deployment
        self.injector = Injector(deployment, network, VOLUME)
        self.histories = deployment.base / "histories"
        self.rows: list[Row] = []

    async def begin(self, small_disk: contextlib.ExitStack | None = None) -> None:
        """With ``small_disk``, which unmounts it, one site lies on a disk that can be filled."""
        self.histories.mkdir()
        data = self.deployment.base / "data"
        data.mkdir()
        await self.deployment.up(",".join(SITES))
        if small_disk is not None:
            await self._move_to_small_disk(SITES[-1], small_disk)
        argv = [sys.executable, str(WRITER), "{path}", str(self.histories)]
        await self.deployment.run(VOLUME, "east", data, argv)
        await self._goes_on()

    async def _move_to_small_disk(self, site: str, mounts: contextlib.ExitStack) -> None:
        folder = self.deployment.dir / "sites" / site
        await self.deployment.post(f"/v1/sites/{site}/stop")
        aside = folder.rename(folder.with_name(f"{site}.aside"))
        mounts.enter_context(small_disks.mounted(folder, DISK_BYTES))
        shutil.copytree(aside, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
        shutil.rmtree(aside)
        await self.deployment.post(f"/v1/sites/{site}/start", timeout_s=RECOVER_S)
        self.injector.disks[site] = folder

    async def round(self, fault: Fault) -> None:
        before = (await self.deployment.volume(VOLUME))["leader"]
        print(f"{fault}, led by {before} ...", flush=True)
        since_ns = time.monotonic_ns()
        site = await self.injector.inject(fault)
        after = await self._goes_on()
        self.rows.append(Row(str(fault), site, f"{before} > {after}", since_ns, time.monotonic_ns()))

    async def judge(self) -> list[str]:
        """At the end, with the program at rest: what is wrong."""
        (self.histories / "rest").touch()
        found = await is_whole(self.deployment, VOLUME, RECOVER_S)
        await until(self._writers_rest, bool, "the program rests")
        verified = await self.deployment.post(f"/v1/volumes/{VOLUME}/verify", timeout_s=120.0)
        wrong = [] if verified["ok"] else [f"verify: {verified}"]
        leader = Path(found["path"])
        wrong += record_checker.judge(
            record_checker.read_histories(self.histories),
            (leader / "records").read_bytes(),
            (leader / "slots").read_bytes(),
        )
        epochs = [reign["epoch"] for reign in found["chain"]]
        if epochs != sorted(set(epochs)):
            wrong.append(f"an epoch was given twice: {found['chain']}")
        for site in found["sites"]:
            wrong += await self._differences(leader, Path(site["path"]), site["site"])
        return wrong

    async def table(self) -> str:
        operations = record_checker.read_histories(self.histories)
        path = Path((await self.deployment.volume(VOLUME))["path"]) / "records"
        gone = record_checker.lost(operations, path.read_bytes())
        lines = [f"{'FAULT':<36}{'AT':<7}{'LED BY':<15}{'STALL s':>8}{'ACKNOWLEDGED':>14}{'LOST':>6}"]
        for row in self.rows:
            stall_s = record_checker.longest_stall_ms(operations, row.since_ns, row.until_ns) / 1000
            told, lost = (_within(row, some) for some in (operations, gone))
            lines.append(f"{row.fault:<36}{row.site:<7}{row.leaders:<15}{stall_s:>8.1f}{told:>14}{lost:>6}")
        told = sum(one.end_ns is not None for one in operations)
        lines.append(f"{'in all':<66}{told:>14}{len(gone):>6}")
        return "\n".join(lines)

    async def _goes_on(self) -> str:
        """Until everything is well again and new records are acknowledged; who leads."""
        before = self._acknowledged()
        found = await is_whole(self.deployment, VOLUME, RECOVER_S)

        async def acknowledged() -> int:
            return self._acknowledged()

        await until(
            acknowledged,
            lambda count: count > before + MORE,
            f"more than {before} are acknowledged",
            RECOVER_S,
        )
        return str(found["leader"])

    def _acknowledged(self) -> int:
        return sum(path.read_bytes().count(b"ok ") for path in self._paths())

    def _paths(self) -> list[Path]:
        return [path for path in self.histories.iterdir() if path.name != "rest"]

    async def _writers_rest(self) -> bool:
        newest = max(self._paths(), key=lambda path: path.name)
        return newest.read_text().split("\n")[-2].startswith("rest ")

    async def _differences(self, leader: Path, other: Path, site: str) -> list[str]:
        """Between two directories, once the other had time to apply what it holds."""

        async def differences() -> list[object]:
            expected, found = directory_digests.digest(str(leader)), directory_digests.digest(str(other))
            return list(directory_digests.compare(expected, found))

        try:
            await until(differences, lambda found: not found, f"{site} has what the leader has", 60.0, 0.5)
        except AssertionError as error:
            return [str(error)]
        return []


def _within(row: Row, operations: Sequence[record_checker.Operation]) -> int:
    return sum(one.end_ns is not None and row.since_ns <= one.end_ns < row.until_ns for one in operations)


@contextlib.asynccontextmanager
async def running(base: Path, *, small_disk: bool = False) -> AsyncIterator[Rounds]:
    """Three sites, their network, and the program; nothing of it stays."""
    with contextlib.ExitStack() as mounts, site_networks.made(SITES) as network:
        deployment = Deployment(base)
        deployment.told = ["--auto-failover", "--lease-ttl-ms", str(TTL_MS), *network.told]
        rounds = Rounds(deployment, network)
        try:
            await rounds.begin(mounts if small_disk else None)
            yield rounds
        finally:
            rounds.injector.mend()
            await deployment.stop()


async def suite(seed: int, count: int, among: Sequence[str], base: Path) -> list[str]:
    chance = random.Random(seed)
    async with running(base, small_disk=True) as rounds:
        faults = [rounds.injector.draw(chance, LONGEST_S, among) for _ in range(count)]
        wrong: list[str] = []
        try:
            for fault in faults:
                await rounds.round(fault)
            wrong = await rounds.judge()
        except AssertionError as error:
            wrong = [str(error)]
        print(await rounds.table())
    return wrong


def main() -> int:
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    count = int(os.environ.get("ROUNDS") or ROUNDS)
    print(f"SEED={seed} ROUNDS={count}", flush=True)
    among = [name for name in os.environ.get("FAULTS", "").split(",") if name]
    base = Path(tempfile.mkdtemp(prefix="dk-chaos-"))
    wrong = asyncio.run(suite(seed, count, among, base))
    if wrong:
        print("\n".join(wrong), f"\nSEED={seed} ROUNDS={count}; everything is kept in {base}")
        return 1
    shutil.rmtree(base)
    print(
        f"nothing acknowledged was lost, nothing stands twice, all sites are equal; SEED={seed} ROUNDS={count}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
