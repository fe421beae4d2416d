"""A SAC in a cluster that has no control: its pod's own containers, run as the manifest says, and the operator asking their agent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import brokers, kubernetes, pod_runner
from tests.support.kubernetes import Cluster, Operator, eventually
from tests.support.pod_runner import PodNetwork, PodRunner
from tests.support.replicators import TOKEN, ReplicatorProcess
from tests.support.sacs import DEPLOY

from diffkeeper import nats_server
from diffkeeper.domain import volumes
from diffkeeper_capture.bpf_probe import BpfProbe
from diffkeeper_operator import pods, specs
from dkctl import manifests

pytestmark = [
    pytest.mark.disaster,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        "DIFFKEEPER_PODS" not in os.environ,
        reason="make test-k8s runs it: one of ten runs waited in vain for a reason not found yet (DIFFKEEPER_PODS=1)",
    ),
]

STATE = "/var/lib/rows/data"
# The one of the tests: a bare name may lead to a wrapper that only its owner may execute.
PYTHON = str(Path(sys.executable).resolve())
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


def resource(**spec: Any) -> dict[str, Any]:
    program = {
        "name": "rows",
        "image": "rows:1",
        "command": [PYTHON, "-c", PROGRAM],
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


def give_secret(cluster: Cluster, namespace: str, name: str = "diffkeeper") -> None:
    words = {"token": TOKEN, "broker-secret": brokers.SECRET}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": words}
    cluster.apply(secret, namespace)


@contextlib.contextmanager
def pod(cluster: Cluster, folder: Path, network: PodNetwork, namespace: str) -> Iterator[PodRunner]:
    runner = PodRunner(cluster, folder, network, namespace, "rows-0")
    try:
        yield runner
    finally:
        runner.end()
        print(runner.logs())


def captured(cluster: Cluster, namespace: str, name: str = "rows") -> tuple[str, str, str]:
    told = (cluster.sac(namespace, name).get("status") or {}).get("conditions", [])
    one: dict[str, str] = next((one for one in told if one["type"] == "Captured"), {})
    return one.get("status", ""), one.get("reason", ""), one.get("message", "")


def wait_for(cluster: Cluster, namespace: str, *wanted: str, name: str = "rows") -> None:
    try:
        eventually(lambda: captured(cluster, namespace, name)[:2] == wanted)
    except AssertionError as error:
        raise AssertionError(f"{wanted} did not come: {cluster.sac(namespace, name)['status']}") from error


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
            cluster.apply(resource(), namespace)
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

            # A claim that was lost: the log has what nothing here continues, and it is not begun anew.
            cluster.kubectl("delete", "pod", "rows-0", "-n", namespace, "--wait=false")
            runner.end()
            runner.forget()
            shutil.rmtree(runner.volume(pods.STATE))
            runner.bring_up()
            wait_for(cluster, namespace, "False", "AttachRefused")
            assert "its tree" in captured(cluster, namespace)[2]


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


async def delete(cluster: Cluster, namespace: str, runner: PodRunner, sites: brokers.Brokers) -> None:
    """Its claims go too, but not before what was written is in the log."""
    await sites.servers["east"].kill()
    cluster.kubectl("delete", "sac", "rows", "-n", namespace, "--wait=false")

    def waits() -> bool:
        status = cluster.sac(namespace, "rows")["status"]
        return status["phase"] == "Deleting" and "nothing was removed" in status["message"]

    eventually(waits)
    assert not runner.is_condemned()
    await sites.restart("east")
    eventually(runner.is_condemned)
    runner.end()
    runner.forget()
    eventually(lambda: cluster.sac(namespace, "rows") is None)
    claims = json.loads(cluster.kubectl("get", "pvc", "-n", namespace, "-o", "json"))["items"]
    assert all("deletionTimestamp" in claim["metadata"] for claim in claims)


# What the image does: a database made where there is none, and then the server, neither of them as root.
POSTGRES = """
set -eu
state=/var/lib/postgresql/data
chown postgres "$state"
chmod 700 "$state"
as="setpriv --reuid=postgres --regid=postgres --init-groups --"
if [ ! -s "$state/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" >/run/password
    chmod 644 /run/password
    $as BINARIES/initdb -D "$state" --auth=scram-sha-256 --pwfile=/run/password
fi
exec $as BINARIES/postgres -D "$state" -c listen_addresses=127.0.0.1 -c unix_socket_directories=
"""


async def test_the_seeds_manifest_and_an_overlay_give_a_captured_postgresql(
    cluster: Cluster, namespace: str, network: PodNetwork, tmp_path: Path
) -> None:
    if why := BpfProbe.why_not():
        pytest.skip(why)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    image = ["sh", "-c", POSTGRES.replace("BINARIES", str(found[-1].parent))]
    system = "diffkeeper-system"
    give_secret(cluster, system, "diffkeeper-control")
    give_secret(cluster, namespace)
    things = [one for one in yaml.safe_load_all(manifests.render("single")) if one]
    cluster.kubectl("apply", "-f", "-", stdin=manifests.render("single"))
    # The operator's own pod is not run: it is a process, so that the test sees what it says.
    cluster.kubectl("delete", "deployment", "diffkeeper-operator", "-n", system)
    broker = PodRunner(cluster, tmp_path / "broker", network, system, "diffkeeper-nats-0")
    runner = PodRunner(cluster, tmp_path / "pod", network, namespace, "postgres-0", {"postgres:15": image})
    token = tmp_path / "token"
    token.write_text(TOKEN)
    try:
        broker.bring_up()
        [told] = [
            one["data"]["operator.json"]
            for one in things
            if one["metadata"]["name"] == "diffkeeper-operator" and "data" in one
        ]
        # Names are resolved by a cluster's own DNS.
        settings = json.loads(told) | {
            "agent_token_file": str(token),
            "figures_every_s": 1.0,
            "brokers": [f"nats://{network.pod}:4222"],
        }
        with kubernetes.operator(cluster, tmp_path / "operator", **settings):
            cluster.kubectl("apply", "-n", namespace, "-f", str(DEPLOY / "examples" / "postgres.yaml"))
            runner.bring_up()
            wait_for(cluster, namespace, "True", "Capturing", name="postgres")
            password = cluster.call("GET", f"/api/v1/namespaces/{namespace}/secrets/postgres-credentials")[
                "data"
            ]["password"]
            query = partial(psql, network, found[-1].with_name("psql"), base64.b64decode(password).decode())
            eventually(lambda: query("create table if not exists kept (n int)") == 0)
            assert query("insert into kept select generate_series(1, 1000)") == 0
            before = position(cluster, namespace)
            assert query("checkpoint") == 0
            eventually(lambda: position(cluster, namespace) != before)
    finally:
        runner.end()
        broker.end()
        print(runner.logs(), broker.logs())
        cluster.kubectl("delete", "statefulset", "diffkeeper-nats", "-n", system)
        if broker.is_condemned():
            broker.forget()


def position(cluster: Cluster, namespace: str) -> str:
    return str(cluster.sac(namespace)["status"]["position"])


def psql(network: PodNetwork, program: Path, password: str, query: str) -> int:
    """Its exit code, asked from within the pod."""
    words = ["-h", "127.0.0.1", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", query]
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{network.namespace}", "--", program, *words],
        env={**os.environ, "PGPASSWORD": password},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done.returncode


async def test_a_node_without_the_right_to_bpf_falls_back_and_a_deletion_waits_for_the_log(
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
            cluster.apply(resource(deletionPolicy="Delete"), namespace)
            runner.bring_up()
            wait_for(cluster, namespace, "False", "FallbackPolling")
            assert "BPF, PERFMON" in captured(cluster, namespace)[2]
            await delete(cluster, namespace, runner, sites)
