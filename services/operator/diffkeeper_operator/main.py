"""``diffkeeper-operator --config FILE``: the composition root of the operator. Exactly one of several acts, by a lease."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from diffkeeper import service, settings
from diffkeeper.domain import errors, volumes
from diffkeeper_operator.control import ControlClient
from diffkeeper_operator.deletion import Deleter
from diffkeeper_operator.handlers import Handlers, kopf_settings
from diffkeeper_operator.kube import Kube
from diffkeeper_operator.lease_keeper import LeaseKeeper
from diffkeeper_operator.one_shot_worker import OneShotWorker
from diffkeeper_operator.own_agents import OwnAgents
from diffkeeper_operator.reconciler import Reconciler, wall_us
from diffkeeper_operator.settings import OperatorSettings


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="diffkeeper-operator", description="Keep every SAC of a Kubernetes cluster as it says."
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings, as JSON")
    config: Path = parser.parse_args().config

    async def serve(scope: service.Scope) -> None:
        loaded = settings.load(config, OperatorSettings)
        volumes.check_name("cluster", loaded.cluster)
        await _serve(scope, loaded)

    service.run_service("diffkeeper-operator", serve)


async def _serve(scope: service.Scope, loaded: OperatorSettings) -> None:
    # Kopf tells each retry as an error; what matters stands in the status.
    logging.getLogger("kopf").setLevel(logging.CRITICAL)
    kube = Kube(_login)
    try:
        async with aiohttp.ClientSession() as session:
            control = _control(loaded, session)
            agents = _agents(loaded, kube, session) if control is None else None
            await _lead(scope, loaded, kube, control, agents)
    finally:
        await kube.close()


async def _lead(
    scope: service.Scope,
    loaded: OperatorSettings,
    kube: Kube,
    control: ControlClient | None,
    agents: OwnAgents | None,
) -> None:
    minor = await kube.minor()
    lease = LeaseKeeper(kube, loaded)
    scope.log.info("waiting for the lease", identity=loaded.who())
    if not await _before_stop(scope, lease.acquire()):
        return
    scope.spawn("keep the lease", lease.keep())
    reconciler = Reconciler(kube, control, loaded, minor, agents=agents)
    handlers = Handlers(
        kube,
        reconciler,
        Deleter(kube, control, loaded.cluster, agents),
        OneShotWorker(kube, control, loaded.cluster, wall_us),
        interval_s=loaded.interval_s,
    )
    kopf.on.login(registry=handlers.registry)(lambda **_: _login())
    ready, stop = asyncio.Event(), asyncio.Event()
    running = scope.spawn(
        "kopf",
        kopf.operator(
            registry=handlers.registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=True,
            ready_flag=ready,
            stop_flag=stop,
        ),
    )
    await _before_stop(scope, ready.wait(), running)
    scope.ready(
        cluster=loaded.cluster, control=loaded.control or ("agents" if agents is not None else "none")
    )
    # Kopf takes SIGTERM for itself and winds down.
    await asyncio.wait([running])
    scope.end_spawned()
    await lease.release()


async def _before_stop(
    scope: service.Scope, work: Coroutine[Any, Any, Any], *others: asyncio.Task[None]
) -> bool:
    """Whether ``work`` was done before the service had to stop."""
    doing = asyncio.create_task(work, name="before the stop")
    stopping = asyncio.create_task(scope.stopping.wait(), name="wait for a signal")
    try:
        done, _ = await asyncio.wait([doing, stopping, *others], return_when=asyncio.FIRST_COMPLETED)
        if doing in done:
            doing.result()
        return doing in done
    finally:
        doing.cancel()
        stopping.cancel()


def _control(loaded: OperatorSettings, session: aiohttp.ClientSession) -> ControlClient | None:
    if not loaded.control:
        return None
    token = settings.read_token(Path(loaded.control_token_file))
    return ControlClient(session, loaded.control, token, loaded.repair)


def _agents(loaded: OperatorSettings, kube: Kube, session: aiohttp.ClientSession) -> OwnAgents | None:
    if not loaded.agent_token_file:
        return None
    return OwnAgents(kube, session, settings.read_token(Path(loaded.agent_token_file)), loaded.cluster)


def _login() -> kopf.ConnectionInfo:
    """The service account of the pod, else the kubeconfig of the user; raises Misconfigured when there is neither."""
    ours = kopf_settings()
    found = kopf.login_with_service_account(settings=ours) or kopf.login_with_kubeconfig(settings=ours)
    if found is None:
        raise errors.Misconfigured(
            "there is no way to an API server: neither a service account nor a kubeconfig",
            reason="no-kubernetes",
            hint="run it in a pod with its ServiceAccount, or set KUBECONFIG",
        )
    return found


if __name__ == "__main__":
    main()
