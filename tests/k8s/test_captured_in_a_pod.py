"""A SAC in a cluster that has no control: its pod's own containers, run as the manifest says, and the operator asking their agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import brokers, kubernetes, pod_runner
from tests.support.kubernetes import Cluster, Operator, eventually
from tests.support.pod_runner import PodNetwork, PodRunner
from tests.support.replicators import TOKEN, ReplicatorProcess

from diffkeeper import nats_server
from diffkeeper.domain import volumes
from diffkeeper_capture.bpf_probe import BpfProbe
from diffkeeper_operator import pods, specs

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(400)]

STATE = "/var/lib/rows/data"
# Appends by a database, and by a program whose every write has to be safe; as a user with no rights over others.
PROGRAM = f"""
import os, sqlite3, time
rows = sqlite3.connect("{STATE}/rows.db", isolation_level=None)
rows.execute("pragma journal_mode = wal")
rows.execute("create table if not exists rows (number integer primary key, text blob)")
journal = os.open("{STATE}/journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC, 0o644)
while True:
    rows.execute("insert into rows (text) values (randomblob(500))")
    os.write(journal, b"one more line\\n")
    time.sleep(0.05)
"""


def manifest(**spec: Any) -> dict[str, Any]:
    program = {
        "name": "rows",
        "image": "rows:1",
        "command": ["python3", "-c", PROGRAM],
        "securityContext": {"runAsUser": 65534},
    }
    return {
        "apiVersion": specs.API_VERSION,
        "kind": "SAC",
        "metadata": {"name": "rows"},
        "spec": {"template": {"spec": {"containers": [program]}}, "storage": {"path": STATE}} | spec,
    }


@pytest.fixture
def network() -> Iterator[PodNetwork]:
    with pod_runner.network() as made:
        yield made


@contextlib.asynccontextmanager
async def broker(network: PodNetwork, folder: Path) -> AsyncIterator[brokers.Brokers]:
    """The site's own, where pods reach it."""
    started = brokers.Brokers(folder)
    config = dataclasses.replace(brokers.site_config("east", folder), host=network.host)
    try:
        started.servers["east"] = await nats_server.NatsServer.start(config)
        yield started
    finally:
        await started.stop()


@contextlib.contextmanager
def operator(cluster: Cluster, folder: Path, url: str) -> Iterator[Operator]:
    folder.mkdir(parents=True)
    token = folder / "token"
    token.write_text(TOKEN)
    with kubernetes.operator(
        cluster, folder / "operator", agent_token_file=str(token), brokers=[url]
    ) as running:
        yield running


def give_secret(cluster: Cluster, namespace: str) -> None:
    words = {"token": TOKEN, "broker-secret": brokers.SECRET}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "diffkeeper"}, "stringData": words}
    cluster.apply(secret, namespace)


@contextlib.contextmanager
def pod(cluster: Cluster, folder: Path, network: PodNetwork, namespace: str) -> Iterator[PodRunner]:
    runner = PodRunner(cluster, folder, network, namespace, "rows-0")
    try:
        yield runner
    finally:
        runner.end()
        print(runner.logs())


def captured(cluster: Cluster, namespace: str) -> tuple[str, str, str]:
    told = (cluster.sac(namespace, "rows").get("status") or {}).get("conditions", [])
    one: dict[str, str] = next((one for one in told if one["type"] == "Captured"), {})
    return one.get("status", ""), one.get("reason", ""), one.get("message", "")


def wait_for(cluster: Cluster, namespace: str, *wanted: str) -> None:
    try:
        eventually(lambda: captured(cluster, namespace)[:2] == wanted)
    except AssertionError as error:
        raise AssertionError(f"{wanted} did not come: {cluster.sac(namespace, 'rows')['status']}") from error


def rows_in(state: Path) -> int:
    journal = state / "journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def files_of(state: Path) -> dict[str, bytes]:
    # The database's index in shared memory is not state: it is made anew by whoever opens it first.
    return {path.name: path.read_bytes() for path in state.iterdir() if not path.name.endswith("-shm")}


async def test_a_volume_is_captured_and_outlives_its_agent_and_its_pod(
    cluster: Cluster, namespace: str, network: PodNetwork, tmp_path: Path
) -> None:
    if why := BpfProbe.why_not():
        pytest.skip(why)
    async with broker(network, tmp_path / "brokers") as sites:
        url = sites.servers["east"].config.client_url
        with (
            operator(cluster, tmp_path / "deployment", url) as running,
            pod(cluster, tmp_path / "pod", network, namespace) as runner,
        ):
            give_secret(cluster, namespace)
            cluster.apply(manifest(deletionPolicy="Delete"), namespace)
            runner.bring_up()
            wait_for(cluster, namespace, "True", "Capturing")
            status = cluster.sac(namespace, "rows")["status"]
            assert (status["primary"], status["epoch"], status["durability"]) == ("east", 1, "site")
            state = runner.volume(pods.DATA) / pods.SUB_PATH
            goes_on(state)

            runner.kill_container(pods.AGENT)
            assert not runner.tell()
            wait_for(cluster, namespace, "Unknown", "AgentUnreachable")
            runner.start_container(pods.AGENT)
            eventually(runner.tell)
            wait_for(cluster, namespace, "True", "Capturing")
            goes_on(state)

            running.kill()
            cluster.kubectl("delete", "pod", "rows-0", "-n", namespace, "--wait=false")
            runner.end()
            runner.forget()
            runner.bring_up()
            running.start()
            wait_for(cluster, namespace, "True", "Capturing")
            goes_on(state)

            runner.kill_container("rows")
            await check_copy(sites, f"{namespace}-rows", state, tmp_path / "west")
            await delete(cluster, namespace, runner)


def goes_on(state: Path) -> None:
    """The program is not held up."""
    before = rows_in(state)
    eventually(lambda: rows_in(state) > before + 10)


async def check_copy(sites: brokers.Brokers, volume: str, state: Path, folder: Path) -> None:
    """Another site's replicator makes the same directory of the log, to the byte."""
    await sites.start("west", hub="east")
    await (await sites.log("west")).create_mirror(volumes.Origin(volume, "east"))
    replicator = ReplicatorProcess("west", folder, sites.servers["west"].config.client_url)
    await replicator.start()
    try:
        chain = [{"site": "east", "epoch": 1, "parent": None}]
        role = {
            "role": "follow",
            "mode": "exclusive",
            "epoch": 1,
            "leader": "east",
            "chain": chain,
            "path": None,
        }
        await replicator.call("PUT", f"/v1/volumes/{volume}", role)
        there = Path((await replicator.call("GET", f"/v1/volumes/{volume}"))["path"])
        async with asyncio.timeout(60):
            while not there.exists() or files_of(there) != files_of(state):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    finally:
        await replicator.stop()


async def delete(cluster: Cluster, namespace: str, runner: PodRunner) -> None:
    """Its claims go too, once what was written is in the log."""
    cluster.kubectl("delete", "sac", "rows", "-n", namespace, "--wait=false")
    eventually(runner.is_condemned)
    runner.end()
    runner.forget()
    eventually(lambda: cluster.sac(namespace, "rows") is None)
    claims = json.loads(cluster.kubectl("get", "pvc", "-n", namespace, "-o", "json"))["items"]
    assert all("deletionTimestamp" in claim["metadata"] for claim in claims)


async def test_a_node_without_the_right_to_bpf_falls_back_and_says_so(
    cluster: Cluster, namespace: str, network: PodNetwork, tmp_path: Path
) -> None:
    async with broker(network, tmp_path / "brokers") as sites:
        url = sites.servers["east"].config.client_url
        with (
            operator(cluster, tmp_path / "deployment", url),
            pod(cluster, tmp_path / "pod", network, namespace) as runner,
        ):
            runner.withheld = {"BPF", "PERFMON"}
            give_secret(cluster, namespace)
            cluster.apply(manifest(), namespace)
            runner.bring_up()
            wait_for(cluster, namespace, "False", "FallbackPolling")
            assert "BPF, PERFMON" in captured(cluster, namespace)[2]
