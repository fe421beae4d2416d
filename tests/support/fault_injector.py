"""Breaks a deployment of several sites in every way there is here, and mends it again; it judges nothing.

Whom a fault hits is said by role (``leader``, ``follower``), so that the same seed draws the same faults whoever leads by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.deployments import Deployment, until
from tests.support.site_networks import HUB, SiteNetwork

from diffkeeper.domain import errors
from diffkeeper_control import processes

# Services that control starts again by itself.
SERVICES = ("agent", "replicator", "nats", "link")
SLOW_KBIT_PER_S = 512
START_S = 150.0
SMALL_DISK = "small disk"


@dataclass(frozen=True, slots=True)
class Fault:
    """``name`` is one of ``Injector.ways``; ``chance`` seeds what is drawn within it."""

    name: str
    whom: str  # leader, follower or small disk
    hold_s: float
    chance: int

    def __str__(self) -> str:
        return f"{self.name} ({self.whom}) {self.hold_s:.1f} s"


class Injector:
    def __init__(self, deployment: Deployment, network: SiteNetwork, volume: str) -> None:
        self._deployment = deployment
        self._network = network
        self._volume = volume
        # The small disks that some sites lie on, which only those faults can fill.
        self.disks: dict[str, Path] = {}
        self.ways: dict[str, Callable[[str, Fault, random.Random], Awaitable[None]]] = {
            "kill-agent": self._kill_service,
            "kill-replicator": self._kill_service,
            "kill-nats": self._kill_service,
            "kill-link": self._kill_service,
            "kill-control": self._kill_control,
            "kill-site": self._kill_site,
            "pause-site": self._pause_site,
            "pause-service": self._pause_service,
            "part-from-all": self._part_from_all,
            "part-from-sites": self._part_from_sites,
            "deaf": self._deaf,
            "mute": self._mute,
            "flapping": self._flapping,
            "slow": self._slow,
            "fill-disk": self._fill_disk,
            "flip-bits": self._flip_bits,
            "planned-move": self._planned_move,
            "two-failovers": self._two_failovers,
        }

    def draw(self, chance: random.Random, longest_s: float, among: Sequence[str] = ()) -> Fault:
        ways = [name for name in among or self.ways if name != "fill-disk" or self.disks]
        name = chance.choice(sorted(ways))
        whom = SMALL_DISK if name == "fill-disk" else chance.choice(["leader", "leader", "follower"])
        return Fault(name, whom, chance.uniform(1.0, longest_s), chance.randrange(1 << 32))

    async def inject(self, fault: Fault) -> str:
        """The whole fault, mended at its end; the site it hit."""
        chance = random.Random(fault.chance)
        site = await self._site(fault.whom, chance)
        await self.ways[fault.name](site, fault, chance)
        return site

    def mend(self) -> None:
        """Whatever was begun and not ended: everything runs, and every cable is whole."""
        self._network.heal_all()
        for pid in self._deployment.processes():
            os.kill(pid, signal.SIGCONT)

    async def _site(self, whom: str, chance: random.Random) -> str:
        if whom == SMALL_DISK:
            return chance.choice(sorted(self.disks))
        leader = str((await self._deployment.volume(self._volume))["leader"])
        return leader if whom == "leader" else chance.choice(self._others(leader))

    def _others(self, site: str) -> list[str]:
        return [other for other in self._network.sites if other != site]

    # Processes.

    async def _kill_service(self, site: str, fault: Fault, chance: random.Random) -> None:
        _signal([self._service(site, fault.name.removeprefix("kill-"))], signal.SIGKILL)
        await asyncio.sleep(fault.hold_s)

    async def _kill_control(self, site: str, fault: Fault, chance: random.Random) -> None:
        self._deployment.kill_control()
        await asyncio.sleep(fault.hold_s)
        await self._deployment.up()

    async def _kill_site(self, site: str, fault: Fault, chance: random.Random) -> None:
        await self._deployment.post(f"/v1/sites/{site}/stop", {"kill": True})
        await asyncio.sleep(fault.hold_s)
        await until(lambda: self._is_started(site), bool, f"{site} is started again", START_S)

    async def _is_started(self, site: str) -> bool:
        """On a busy machine a service may need longer than control waits for it; then it is asked again."""
        try:
            await self._deployment.post(f"/v1/sites/{site}/start", timeout_s=START_S)
        except errors.Transient:
            return False
        return True

    async def _pause_site(self, site: str, fault: Fault, chance: random.Random) -> None:
        await self._paused(await self._all_of(site), fault.hold_s)

    async def _pause_service(self, site: str, fault: Fault, chance: random.Random) -> None:
        await self._paused([self._service(site, chance.choice(SERVICES))], fault.hold_s)

    async def _paused(self, pids: list[int], hold_s: float) -> None:
        _signal(pids, signal.SIGSTOP)
        await asyncio.sleep(hold_s)
        _signal(pids, signal.SIGCONT)

    def _service(self, site: str, role: str) -> int:
        return int(self._deployment.note()["sites"][site]["processes"][role]["pid"])

    async def _all_of(self, site: str) -> list[int]:
        """The services of a site, the program if it runs there, and everything below them."""
        pids = {int(noted["pid"]) for noted in self._deployment.note()["sites"][site]["processes"].values()}
        found = await self._deployment.volume(self._volume)
        if found["leader"] == site and (found["program"] or {}).get("running"):
            pids.add(int(found["program"]["pid"]))
        roots = [process for pid in pids if (process := processes.identify(pid)) is not None]
        return sorted(process.pid for process in processes.with_descendants(roots))

    # The network. Only the first of these keeps control away from the site as well.

    async def _part_from_all(self, site: str, fault: Fault, chance: random.Random) -> None:
        self._network.part([site], [HUB, *self._others(site)])
        await self._healed_after(fault.hold_s)

    async def _part_from_sites(self, site: str, fault: Fault, chance: random.Random) -> None:
        self._network.part([site], self._others(site))
        await self._healed_after(fault.hold_s)

    async def _deaf(self, site: str, fault: Fault, chance: random.Random) -> None:
        """It sends, and hears nothing."""
        for other in self._others(site):
            self._network.cut(other, site)
        await self._healed_after(fault.hold_s)

    async def _mute(self, site: str, fault: Fault, chance: random.Random) -> None:
        """It hears, and nothing it sends arrives."""
        for other in self._others(site):
            self._network.cut(site, other)
        await self._healed_after(fault.hold_s)

    async def _flapping(self, site: str, fault: Fault, chance: random.Random) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + fault.hold_s
        while loop.time() < end:
            among = chance.sample(self._others(site), chance.randint(1, len(self._others(site))))
            self._network.part([site], among)
            await asyncio.sleep(chance.uniform(0.1, 1.5))
            self._network.heal_all()
            await asyncio.sleep(chance.uniform(0.1, 1.0))

    async def _slow(self, site: str, fault: Fault, chance: random.Random) -> None:
        self._network.slow_down(site, SLOW_KBIT_PER_S)
        await self._healed_after(fault.hold_s)

    async def _healed_after(self, hold_s: float) -> None:
        await asyncio.sleep(hold_s)
        self._network.heal_all()

    # Disks.

    async def _fill_disk(self, site: str, fault: Fault, chance: random.Random) -> None:
        """Nothing more can be written at the site until there is room again."""
        disk = self.disks[site]
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            end = asyncio.get_running_loop().time() + fault.hold_s
            # What others free meanwhile is taken as well.
            while asyncio.get_running_loop().time() < end:
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                with contextlib.suppress(OSError):
                    if free:
                        os.posix_fallocate(file.fileno(), file.tell(), free)
                        file.seek(free, os.SEEK_CUR)
                await asyncio.sleep(0.05)
        ballast.unlink()

    async def _flip_bits(self, site: str, fault: Fault, chance: random.Random) -> None:
        """Rot in a block of one of its streams, found by the broker when it starts again."""
        store = self._deployment.dir / "sites" / site / "nats" / "store"
        blocks = sorted(path for path in store.rglob("*.blk") if path.stat().st_size)
        with chance.choice(blocks).open("r+b") as file:
            at = chance.randrange(os.fstat(file.fileno()).st_size)
            file.seek(at)
            [byte] = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
        _signal([self._service(site, "nats")], signal.SIGKILL)
        await asyncio.sleep(fault.hold_s)

    # Operators.

    async def _planned_move(self, site: str, fault: Fault, chance: random.Random) -> None:
        to = chance.choice(self._others(await self._site("leader", chance)))
        # Refused where the target is not ready for it, and then nothing has changed.
        with contextlib.suppress(errors.Refused):
            await self._deployment.post(f"/v1/volumes/{self._volume}/failover?wait_s=60", {"to": to}, 120.0)

    async def _two_failovers(self, site: str, fault: Fault, chance: random.Random) -> None:
        """The leader is cut off, and two operators force the volume to two sites at once; one at most is obeyed."""
        site = await self._site("leader", chance)
        self._network.part([site], [HUB, *self._others(site)])
        answers = await asyncio.gather(*(self._forced(other) for other in self._others(site)))
        accepted = [answer["id"] for answer in answers if answer is not None]
        assert len(accepted) <= 1 or accepted[0] == accepted[1], f"both moves were accepted: {answers}"
        await self._healed_after(fault.hold_s)

    async def _forced(self, to: str) -> dict[str, Any] | None:
        body = {"to": to, "force": True, "accept_loss": True}
        try:
            answer: dict[str, Any] = await self._deployment.post(f"/v1/volumes/{self._volume}/failover", body)
        except errors.Refused:
            return None  # another move was under way, or has ended there already
        return answer


def _signal(pids: list[int], number: signal.Signals) -> None:
    """To those that still run: what control starts again may have another number by now."""
    for pid in pids:
        process = processes.identify(pid)
        if process is not None:
            processes.send(process, number)


async def is_whole(deployment: Deployment, volume: str, timeout_s: float) -> dict[str, Any]:
    """Until the program runs, all other sites follow, and another one could take over."""

    def does(found: dict[str, Any]) -> bool:
        others = [site for site in found["sites"] if site["site"] != found["leader"]]
        return (
            found["operation"] is None
            and bool((found["program"] or {}).get("running"))
            and found["automatic"]["state"] == "ready"
            and all((site["role"], site["state"]) == ("follow", "following") for site in others)
        )

    async def ask() -> dict[str, Any]:
        try:
            return await deployment.volume(volume)
        except errors.Transient as error:
            return {"operation": error.message, "leader": "", "sites": []}

    found: dict[str, Any] = await until(ask, does, "everything is well again", timeout_s, 0.1)
    return found
