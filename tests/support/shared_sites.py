"""Sites of a shared volume without brokers: engines with real directories, whose records a test hands on."""

from __future__ import annotations

import os
import time
from pathlib import Path

from diffkeeper.domain import shared_ops
from diffkeeper_replicator.merging_service.site_engine import SiteEngine

SETTLE_S = 20.0


class EngineSite:
    """One site: its directory, and its engine, which can be let go without a word and begun again."""

    def __init__(self, base: Path, name: str, ahead_us: int = 0) -> None:
        self.name = name
        self.base = base
        self.path = base / name
        self.path.mkdir()
        self.log: list[bytes] = []
        self.sites: tuple[str, ...] = (name,)
        self.ahead_us = ahead_us
        self.engine = self._begin()

    def _begin(self) -> SiteEngine:
        engine = SiteEngine(self.name, self.base / f"{self.name}-own", self.path, self._now_us)
        engine.state.set_sites(self.sites)
        engine.start()
        return engine

    def begin(self) -> None:
        """After the engine was closed in order."""
        self.engine = self._begin()

    def _now_us(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    def restart(self) -> None:
        """As after SIGKILL: what was not committed is gone."""
        self.engine.store.close()
        self.engine.directory.close()
        self.engine = self._begin()

    def settle(self, *, scan: bool = True) -> None:
        """Until nothing is left to do here."""
        deadline = time.monotonic() + SETTLE_S
        if scan:
            self.engine.scan()
        while self.engine.step() or self.engine.is_waiting:
            assert time.monotonic() < deadline, self.engine.status()
            time.sleep(0.002)
        self.engine.look_at_displaced()
        self.publish()

    def publish(self) -> None:
        for number, packed in self.engine.store.outbox(1 << 30):
            assert number == len(self.log) + 1, "records are published once, in order"
            self.log.append(packed)
        self.engine.store.drop_outbox(len(self.log))
        self.engine.store.commit()

    def hear(self, other: EngineSite) -> None:
        """Also what was heard before: a stream may come twice."""
        self.engine.take(shared_ops.decode(packed, other.name) for packed in other.log)

    def tree(self) -> dict[str, str]:
        """Path → content, the target of a link, or ``/``."""
        found: dict[str, str] = {}
        for directory, names, files in os.walk(self.path):
            for name in names + files:
                path = Path(directory) / name
                key = str(path.relative_to(self.path))
                if path.is_symlink():
                    found[key] = f"-> {path.readlink()}"
                else:
                    found[key] = "/" if path.is_dir() else path.read_bytes().decode("utf-8", "replace")
        return found


def join(*sites: EngineSite) -> None:
    for site in sites:
        site.sites = tuple(other.name for other in sites)
        site.engine.state.set_sites(site.sites)


def exchange(*sites: EngineSite, rounds: int = 3) -> None:
    """All hear all until they agree."""
    for _ in range(rounds):
        for site in sites:
            site.settle()
        for site in sites:
            for other in sites:
                if other is not site:
                    site.hear(other)
    for site in sites:
        site.settle()
