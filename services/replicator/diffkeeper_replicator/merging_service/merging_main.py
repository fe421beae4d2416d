"""The merging process of a replicator: a child that keeps the shared volumes of a site, so that following is never
disturbed by it.

Its parent writes one line of settings to its standard input and keeps that open; when it ends, so does this.
It answers HTTP on a loopback port that it prints first.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec

from diffkeeper import http
from diffkeeper.log import event_log, nats_event_log
from diffkeeper_replicator import healing_log
from diffkeeper_replicator.merging_service.merging_api import MergingApi
from diffkeeper_replicator.merging_service.shared_volumes import SharedVolumes


class MergingSettings(msgspec.Struct, frozen=True, kw_only=True):
    site: str
    # Below it one directory for each shared volume.
    dir: str
    token: str
    servers: tuple[str, ...]
    broker_secret: str
    sites: tuple[str, ...] = ()
    repair: str | None = None


def main() -> None:
    wanted = msgspec.json.decode(sys.stdin.buffer.readline(), type=MergingSettings)
    asyncio.run(serve(wanted))


async def serve(wanted: MergingSettings) -> None:
    log: event_log.EventLog = await nats_event_log.NatsEventLog.connect(
        wanted.site,
        wanted.servers,
        password=wanted.broker_secret,
        name=f"diffkeeper-merging-{wanted.site}",
        sites=wanted.sites,
    )
    if wanted.repair is not None:
        log = healing_log.HealingEventLog(log, wanted.repair, wanted.token)
    shared = SharedVolumes(Path(wanted.dir), log, lambda: time.time_ns() // 1000)
    try:
        shared.resume()
        app = http.make_app(wanted.token)
        MergingApi(shared).add_routes(app)
        async with http.serve(app, "127.0.0.1", 0) as port:
            print(port, flush=True)  # noqa: T201  the parent waits for it
            await _until_end_of_input()
    finally:
        await shared.close()
        await log.close()


async def _until_end_of_input() -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, look)
    await ended.wait()


if __name__ == "__main__":
    main()
