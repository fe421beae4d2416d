"""``diffkeeper-capture --config FILE``: the composition root of the capture agent."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

from diffkeeper import http, service, settings
from diffkeeper.log.nats_event_log import NatsEventLog
from diffkeeper_capture.agent import Agent
from diffkeeper_capture.agent_api import AgentApi
from diffkeeper_capture.settings import AgentSettings

# How long a thread that packs frames may keep the interpreter from the one that reads the ring.
SWITCH_INTERVAL_S = 0.0005
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of glibc's malloc.h.
_MALLOC = {-3: 32 * 1024 * 1024, -1: 32 * 1024 * 1024, -8: 2}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="diffkeeper-capture", description="Capture the writes of a node's volumes."
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings, as JSON")
    config: Path = parser.parse_args().config

    async def serve(scope: service.Scope) -> None:
        await _serve(scope, settings.load(config, AgentSettings))

    service.run_service("diffkeeper-capture", serve)


def _hold_memory() -> None:
    """Let the C library keep the blocks that frames are made of: to give them back and have them zeroed by the kernel
    for each frame takes as long as compressing it. What is kept is bounded, because what is in work is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def _hurry(nice: int, scope: service.Scope) -> int:
    """Ask for the processor before others: what is not read from the ring in time is a gap. The priority before.

    For every thread alike, so before there are others: one that is left behind while it holds the
    interpreter's lock would hold up the one that hurries.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if nice:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except PermissionError:
            scope.log.warning("no right to a higher priority; a busy machine may cause gaps", nice=nice)
    return before


async def _serve(scope: service.Scope, loaded: AgentSettings) -> None:
    _hold_memory()
    program_nice = _hurry(loaded.nice, scope)
    token = settings.read_token(Path(loaded.token_file))
    secret = settings.read_token(Path(loaded.broker_secret_file))
    log = await NatsEventLog.connect(loaded.site, loaded.servers, password=secret, name="diffkeeper-capture")
    agent = Agent(loaded, log, program_nice)
    try:
        agent.open()
        scope.spawn("drain", agent.run())
        app = http.make_app(token)
        AgentApi(agent).add_to(app)
        async with http.serve(app, loaded.host, loaded.port) as port:
            scope.ready(site=loaded.site, port=port, probe=agent.status()["probe"])
            await scope.stopping.wait()
    finally:
        await agent.close()
        await log.close()


if __name__ == "__main__":
    main()
