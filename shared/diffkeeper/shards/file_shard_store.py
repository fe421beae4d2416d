"""Shards as files of one directory: for shards taken off a node, and put back. One file an item, named by its key."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffkeeper import atomic_files
from diffkeeper.domain import shard_headers
from diffkeeper.domain.shard_headers import Key
from diffkeeper.shards import shard_store

SUFFIX = ".dkshard"

T = TypeVar("T")


class FileShardStore:
    def __init__(self, node: str, directory: Path) -> None:
        self.node = node
        self._directory = directory

    async def check(self) -> shard_store.Vitals:
        return await self._do(self._check)

    async def put(self, key: Key, data: bytes) -> None:
        def write() -> None:
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic_files.write_bytes(self._path(key), data)

        await self._do(write)

    async def get(self, key: Key) -> bytes | None:
        def read() -> bytes | None:
            try:
                # A link may lead anywhere, and a pipe waits for ever: neither is a shard.
                descriptor = os.open(
                    self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                # A file that is larger than any shard is none; it is not taken into memory to find out.
                return file.read(shard_headers.MAX_BYTES + 1)

        return await self._do(read)

    async def remove(self, key: Key) -> None:
        await self._do(lambda: self._path(key).unlink(missing_ok=True))

    async def keys(self) -> shard_store.Listing:
        def look() -> list[Key]:
            names = [path.name.removesuffix(SUFFIX) for path in self._directory.glob(f"*{SUFFIX}")]
            return sorted(key for name in names if (key := shard_headers.parse_key(name)) is not None)

        return shard_store.Listing(await self._do(look), [])

    async def close(self) -> None:
        """Nothing to end."""

    def _path(self, key: Key) -> Path:
        return self._directory / f"{key}{SUFFIX}"

    def _check(self) -> shard_store.Vitals:
        self._directory.mkdir(parents=True, exist_ok=True)
        stored = sum(path.stat().st_size for path in self._directory.glob(f"*{SUFFIX}"))
        return shard_store.Vitals(str(self._directory.stat().st_ino), stored)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise shard_store.full(self.node, str(error)) from error
            raise shard_store.unreachable(self.node, str(error)) from error
