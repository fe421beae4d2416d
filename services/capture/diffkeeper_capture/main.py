"""``diffkeeper-capture --config FILE``: the composition root of the capture agent."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import diffkeeper_capture.lean_start  # noqa: F401 - before what it is about
from diffkeeper import heap, http, service, settings
from diffkeeper.leases.nats_lease_store import NatsLeaseStore
from diffkeeper.log.nats_event_log import NatsEventLog
from diffkeeper_capture.agent import Agent
from diffkeeper_capture.agent_api import AgentApi
from diffkeeper_capture.settings import AgentSettings

# How long a thread that packs frames may keep the interpreter from the one that reads the ring.
SWITCH_INTERVAL_S = 0.0005
# How long one link server may take to answer before the next is asked.
LEASE_ATTEMPT_S = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="diffkeeper-capture", description="Capture the writes of a node's volumes."
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings, as JSON")
    config: Path = parser.parse_args().config

    async def serve(scope: service.Scope) -> None:
        await _serve(scope, settings.load(config, AgentSettings))

    service.run_service("diffkeeper-capture", serve)


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
        _hurry_session(nice)
    return before


def _hurry_session(nice: int) -> None:
    """Where the kernel gives each session the same share of the processors (sched_autogroup), a priority counts only
    among the processes of one session: then ours has to have it, if nobody else is in it.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # this kernel does not, or we have no right to it, which was said
            Path("/proc/self/autogroup").write_text(str(nice))


async def _serve(scope: service.Scope, loaded: AgentSettings) -> None:
    heap.hold()
    program_nice = _hurry(loaded.nice, scope)
    token = settings.read_token(Path(loaded.token_file))
    secret = settings.read_token(Path(loaded.broker_secret_file))
    log = await NatsEventLog.connect(
        loaded.site, loaded.servers, password=secret, name="diffkeeper-capture", sites=loaded.sites
    )
    leases = _leases(loaded, secret)
    agent = Agent(loaded, log, program_nice, leases)
    try:
        agent.open()
        heap.trim()
        scope.spawn("drain", agent.run())
        app = http.make_app(token)
        AgentApi(agent).add_to(app)
        async with http.serve(app, loaded.host, loaded.port) as port:
            scope.ready(site=loaded.site, port=port, probe=agent.status()["probe"])
            await scope.stopping.wait()
    finally:
        await agent.close()
        if leases is not None:
            await leases.close()
        await log.close()


def _leases(loaded: AgentSettings, secret: str) -> NatsLeaseStore | None:
    if not loaded.lease_servers:
        return None
    return NatsLeaseStore.open(
        loaded.lease_servers, password=secret, name="diffkeeper-capture-lease", attempt_s=LEASE_ATTEMPT_S
    )


if __name__ == "__main__":
    main()
