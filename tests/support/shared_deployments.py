"""Programs at the sites of a shared volume in a real deployment: each word is written once, and has to be found at
every site in the end.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.deployments import Deployment, until

VOLUME = "desk"
SITES = ("east", "west", "north")
CONVERGE_S = 180.0


def tree(path: Path) -> dict[str, bytes]:
    """Path → content; ``/`` for directories. A file that goes away meanwhile is not there."""
    found: dict[str, bytes] = {}
    for one in sorted(path.rglob("*")):
        key = str(one.relative_to(path))
        if one.is_dir():
            found[key] = b"/"
            continue
        try:
            found[key] = one.read_bytes()
        except FileNotFoundError:
            continue
    return found


class Desk:
    """The directories of all sites, and what was written there."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self.deployment = deployment
        self.paths = {site: deployment.base / f"desk-{site}" for site in SITES}
        self.words: set[bytes] = set()
        self._rng = random.Random(seed)

    async def attach(self, site: str) -> None:
        self.paths[site].mkdir(exist_ok=True)
        body = {"site": site, "path": str(self.paths[site]), "mode": "shared", "durability": "site"}
        ready = await self.deployment.post(f"/v1/volumes/{VOLUME}/attach", body)
        member = ready["volume"]["volume"]
        await until(
            lambda: self.deployment.volume(member), lambda found: bool(found["ready"]), "it is captured"
        )

    def write(self, site: str, name: str) -> None:
        """A program of the site appends a word to a file."""
        word = f"{site}-{len(self.words)}-{self._rng.randrange(10**6)}".encode()
        self.words.add(word)
        with (self.paths[site] / name).open("ab") as file:
            file.write(word + b"\n")

    def write_some(self, sites: tuple[str, ...], names: tuple[str, ...], count: int) -> None:
        for _ in range(count):
            self.write(self._rng.choice(sites), self._rng.choice(names))

    async def converge(self, what: str) -> dict[str, bytes]:
        """All directories are the same, with every word in them."""

        async def look() -> list[dict[str, bytes]]:
            return [tree(self.paths[site]) for site in SITES]

        def is_one(trees: list[dict[str, bytes]]) -> bool:
            return all(found == trees[0] for found in trees) and not self.missing(trees[0])

        trees: list[dict[str, bytes]] = await until(look, is_one, what, CONVERGE_S, 0.2)
        return trees[0]

    def missing(self, found: dict[str, bytes]) -> set[bytes]:
        everything = b"\n".join(found.values())
        return {word for word in self.words if word not in everything}
