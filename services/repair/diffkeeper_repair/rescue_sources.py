"""Where shards may be found when nothing else is left: dead nodes' stores, exported files, nodes that still answer.

A store of a dead node is never touched: a nats-server is started on a copy of it. What is found is hostile until the
segment's hash has agreed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkeeper import nats_server
from diffkeeper.domain import errors
from diffkeeper.shards import nats_shard_store, shard_store
from diffkeeper.shards.file_shard_store import SUFFIX, FileShardStore

CONNECT_S = 10.0
_SECRET = "rescue"


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    store: shard_store.ShardStore


@dataclass(frozen=True, slots=True)
class Unusable:
    name: str
    why: str


class Sources:
    """What ``--from`` named, opened. Use within ``open_all``."""

    def __init__(self, work: Path, secret: str | None) -> None:
        self._work = work
        self._secret = secret
        self._servers: list[nats_server.NatsServer] = []
        self.opened: list[Source] = []
        self.unusable: list[Unusable] = []

    async def add(self, where: str) -> None:
        """A URL of a node, or a directory: of shard files, of a node, or of several of either."""
        before = len(self.opened) + len(self.unusable)
        if "://" in where:
            await self._guard(where, self._add_url(where))
        else:
            for directory in _candidates(Path(where)):
                await self._guard(str(directory), self._add_directory(directory))
        if len(self.opened) + len(self.unusable) == before:
            self.unusable.append(Unusable(where, "neither a node's store nor shard files are in it"))

    async def _guard(self, name: str, adding: Coroutine[Any, Any, None]) -> None:
        try:
            await adding
        except (errors.DiffKeeperError, OSError) as error:
            self.unusable.append(Unusable(name, str(error)))

    async def _add_url(self, url: str) -> None:
        if self._secret is None:
            raise errors.Misconfigured(
                f"{url} wants the secret of its deployment",
                reason="no-secret",
                hint="--secret-file DIR/control/broker-secret",
            )
        store = await nats_shard_store.NatsShardStore.open(
            url, [url], password=self._secret, name="dkctl-rescue"
        )
        await self._wait_for(store, url)

    async def _wait_for(self, store: nats_shard_store.NatsShardStore, name: str) -> None:
        try:
            await store.wait(CONNECT_S)
        except errors.DiffKeeperError:
            await store.close()
            raise
        self.opened.append(Source(name, store))

    async def _add_directory(self, directory: Path) -> None:
        if any(directory.glob(f"*{SUFFIX}")):
            self.opened.append(Source(str(directory), FileShardStore(str(directory), directory)))
        jetstream = _jetstream(directory)
        if jetstream is not None:
            await self._start_on_copy(directory, jetstream)

    async def _start_on_copy(self, directory: Path, jetstream: Path) -> None:
        number = len(self._servers) + 1
        config = nats_server.ServerConfig(
            f"rescue-{number}",
            self._work / f"node-{number}",
            nats_server.free_port(),
            nats_server.free_port(),
            _SECRET,
        )
        target = config.dir / "store" / "jetstream"
        await asyncio.to_thread(_copy, jetstream, target)
        server = await nats_server.NatsServer.start(config)
        self._servers.append(server)
        store = await nats_shard_store.NatsShardStore.open(
            str(directory), [config.client_url], password=_SECRET, name="dkctl-rescue"
        )
        await self._wait_for(store, str(directory))

    async def close(self) -> None:
        await asyncio.gather(*(source.store.close() for source in self.opened))
        for server in self._servers:
            await server.kill()


@contextlib.asynccontextmanager
async def open_all(wanted: Sequence[str], work: Path, secret: str | None) -> AsyncIterator[Sources]:
    sources = Sources(work, secret)
    try:
        for where in wanted:
            await sources.add(where)
        yield sources
    finally:
        await sources.close()
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)


def _candidates(top: Path) -> list[Path]:
    """The directory itself, or what stands below it: nodes side by side, or a whole deployment."""
    if not top.is_dir():
        raise errors.NotFound(
            f"{top} is no directory", reason="no-source", hint="a directory, or nats://HOST:PORT"
        )
    if _is_source(top):
        return [top]
    below = [top, *(top / "storage",)] if (top / "storage").is_dir() else [top]
    return [
        found
        for parent in below
        for found in sorted(parent.iterdir())
        if found.is_dir() and _is_source(found)
    ]


def _is_source(directory: Path) -> bool:
    return any(directory.glob(f"*{SUFFIX}")) or _jetstream(directory) is not None


def _jetstream(directory: Path) -> Path | None:
    for found in (directory / "store" / "jetstream", directory / "jetstream"):
        if found.is_dir() and any(found.glob(f"*/streams/{nats_shard_store.STREAM}")):
            return found
    return directory if any(directory.glob(f"*/streams/{nats_shard_store.STREAM}")) else None


def _copy(source: Path, target: Path) -> None:
    """Regular files and directories only: a link in a foreign store may point anywhere."""

    def others(parent: str, names: list[str]) -> list[str]:
        paths = [Path(parent, name) for name in names]
        return [path.name for path in paths if path.is_symlink() or not (path.is_dir() or path.is_file())]

    shutil.copytree(source, target, ignore=others)
