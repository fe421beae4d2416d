"""``dkctl verify``: the chain of every replica checked from its first frame, each replica against the log,
the source against a replica.

Three questions, each answered apart: is the log whole (each replicator checks hashes and chain), is a replica
what the log says (its replicator replays the log into a scratch directory), and is the log what the program
wrote (the leader's directory, read here by other code, against a replica that has applied exactly the last
barrier). The last can only be asked while the source stands still, and says so where it does not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from diffkeeper.domain import errors, positions
from diffkeeper_control import directory_digests, registry
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover_requests import LeaderState
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.registry import State, Volume

# How often a source that changed while it was read is read again.
SOURCE_TRIES = 3
APPLY_TIMEOUT_S = 30.0
_POLL_S = 0.02


class Verifier:
    def __init__(self, embedded: Embedded, known: registry.Registry, monitor: Monitor) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor

    async def verify(self, name: str) -> dict[str, Any]:
        began = time.perf_counter()
        volume = self._registry.get(name)
        await self._monitor.look_all()
        followers = [
            site
            for site in self._embedded.sites
            if site != volume.leader and not self._embedded.is_stopped(site)
        ]
        answers = await asyncio.gather(*(self._replica(volume, site) for site in followers))
        source = await self._source(volume, followers)
        chains, replicas = [chain for chain, _ in answers], [replica for _, replica in answers]
        parts = [*chains, *replicas, source]
        ok = all(part["ok"] is not False for part in parts)
        return {
            "volume": name,
            "ok": ok and bool(followers),
            "verdict": _verdict(volume, parts, followers),
            "chains": chains,
            "replicas": replicas,
            "source": source,
            "took_ms": round((time.perf_counter() - began) * 1000, 1),
        }

    async def _replica(self, volume: Volume, site: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the site's replicator found: its chain, and its directory against the log."""
        try:
            answer = await self._embedded.clients[site].replicator.verify(volume.name)
        except errors.DiffKeeperError as error:
            failed = {"site": site, "ok": False, "position": None, "error": error.message}
            return (
                {**failed, "frames": 0, "age_ms": 0},
                {**failed, "compared": "nothing: the replicator did not verify", "differences": []},
            )
        return {"site": site, **answer["chain"], "age_ms": 0}, {"site": site, **answer["replica"]}

    async def _source(self, volume: Volume, followers: list[str]) -> dict[str, Any]:
        path = volume.paths[volume.leader]
        shown: dict[str, Any] = {
            "site": volume.leader,
            "path": path,
            "position": None,
            "ok": None,
            "differences": [],
        }
        if self._monitor.leader_state(volume) is not LeaderState.ALIVE:
            return {**shown, "compared": f"not compared: site {volume.leader} does not answer"}
        if not followers:
            return {**shown, "compared": "not compared: no other site runs"}
        try:
            return {**shown, **await self._compare_source(volume, path, followers[0])}
        except errors.DiffKeeperError as error:
            return {**shown, "compared": f"not compared: {error.message}"}

    async def _compare_source(self, volume: Volume, path: str, site: str) -> dict[str, Any]:
        """The directory against a replica at one position, if nothing is written meanwhile."""
        for _ in range(SOURCE_TRIES):
            position = await self._last_position(volume)
            await self._wait_applied(volume.name, site, position)
            replica = await self._embedded.clients[site].replicator.digest(volume.name)
            found = await asyncio.to_thread(directory_digests.digest, path)
            if replica["position"] != position or await self._last_position(volume) != position:
                continue  # something was written while we read
            differences = directory_digests.compare(found, replica["entries"])
            compared = f"{path} at {volume.leader} with the replica at {site}, both at {position}"
            return {
                "compared": compared,
                "position": position,
                "ok": not differences,
                "differences": differences,
            }
        return {"compared": "not compared: the program wrote each time the directory was read"}

    async def _last_position(self, volume: Volume) -> str:
        if volume.state is State.RELEASED and volume.resume is not None:
            return volume.resume.point.position
        agent = self._embedded.clients[volume.leader].agent
        return str((await agent.sync(volume.name, "remote", APPLY_TIMEOUT_S))["position"])

    async def _wait_applied(self, name: str, site: str, position: str) -> None:
        wanted = positions.parse(position)
        deadline = time.monotonic() + APPLY_TIMEOUT_S
        while True:
            await self._monitor.look(site)
            status = self._monitor.replicator(site).volume(name) or {}
            if status.get("applied") and positions.parse(status["applied"]) >= wanted:
                return
            if time.monotonic() > deadline:
                raise errors.TimedOut(
                    f"the replica at {site} did not reach {position} within {APPLY_TIMEOUT_S:g} s",
                    reason="replica-behind",
                )
            await asyncio.sleep(_POLL_S)


def _verdict(volume: Volume, parts: list[dict[str, Any]], followers: list[str]) -> str:
    if not followers:
        return f"{volume.name} has no replica that could be verified"
    wrong = [part for part in parts if part["ok"] is False]
    if wrong:
        return f"{volume.name} differs: {len(wrong)} of {len(parts)} checks failed"
    if any(part["ok"] is None for part in parts):
        return f"{volume.name}: log and replicas agree; the source was not compared"
    return f"{volume.name}: log, replicas and source agree"
