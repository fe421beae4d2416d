"""A real Kubernetes API server on loopback, with etcd and the controllers of workloads, and the operator as a process beside it.

What is missing is the kubelet: pods are made, but run nowhere, and a test that wants one ready says so itself (``Cluster.bring_up``).
The operator speaks as its own service account and has no right but those of its manifests. The server's audit log keeps what it used.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.support.sacs import DEPLOY

from diffkeeper_operator import specs

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
OPERATOR = "system:serviceaccount:diffkeeper-system:diffkeeper-operator"
# A loaded machine with two cores takes a while for what is quick otherwise.
PATIENCE_S = 150.0
# From nothing to an API server that answers.
STARTING_S = 200.0
_CONTROLLERS = "namespace,garbagecollector,deployment,replicaset,statefulset"

T = TypeVar("T")


def programs() -> Path | None:
    """Where the API server was built to, if it was: ``make test-k8s`` does that."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("DIFFKEEPER_KUBERNETES") or cache / "diffkeeper" / "kubernetes-1.20.2")
    return folder if all(os.access(folder / program, os.X_OK) for program in PROGRAMS) else None


def why_not() -> str:
    """Why there is none, as whoever tried to build it says."""
    return os.environ.get("DIFFKEEPER_KUBERNETES_WHY_NOT") or "make test-k8s builds it, once"


def eventually(look: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first answer of ``look`` that is not empty."""
    end = time.monotonic() + patience_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"it did not come to pass within {patience_s:g} s: {look}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Cluster:
    folder: Path
    binaries: Path
    port: int

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubectl(self, *arguments: str, stdin: str | None = None, expect: int = 0) -> str:
        done = subprocess.run(
            [
                self.binaries / "kubectl",
                f"--kubeconfig={self.folder / 'admin.kubeconfig'}",
                f"--cache-dir={self.folder / 'kubectl'}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if expect == 0 else done.stderr

    def apply(self, thing: dict[str, Any], namespace: str = "default", *, expect: int = 0) -> str:
        return self.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(thing), expect=expect)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The JSON answer; raises urllib's HTTPError when it is refused."""
        request = urllib.request.Request(
            self.address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer admin-token", "Content-Type": kind},
        )
        # Not the default context: to read the machine's certificates takes longer than the answer.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            return json.loads(response.read())

    def find(self, path: str) -> Any:
        """None when it is not there."""
        try:
            return self.call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def sac(self, namespace: str, name: str = "postgres") -> Any:
        return self.find(f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs/{name}")

    def one_shot(self, namespace: str, plural: str, name: str) -> Any:
        return self.find(f"/apis/{specs.API_VERSION}/namespaces/{namespace}/{plural}/{name}")

    def stateful_set(self, namespace: str, name: str = "postgres") -> Any:
        return self.find(f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}")

    def namespace(self) -> str:
        """A new one, for one test."""
        name = f"t{secrets.token_hex(4)}"
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def forget(self, namespace: str) -> None:
        """Take the SACs of a namespace away, finalizers or not: no operator is there any more."""
        path = f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs"
        for sac in self.call("GET", path)["items"]:
            one = f"{path}/{sac['metadata']['name']}"
            self.call("PATCH", one, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
            if self.find(one) is not None:
                self.call("DELETE", one)

    def bring_up(self, namespace: str, pod: str = "postgres-0") -> None:
        """What the kubelet would say when every container of the pod is ready."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        eventually(lambda: self.find(path))
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self.call("PATCH", f"{path}/status", {"status": status}, "application/strategic-merge-patch+json")

    def events(self, namespace: str) -> list[tuple[str, str]]:
        """(reason, message) of what the operator said, oldest first."""
        items = self.call("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        ours = [one for one in items if (one.get("source") or {}).get("component") == "diffkeeper-operator"]
        return [
            (one["reason"], one["message"])
            for one in sorted(ours, key=lambda one: one["metadata"]["resourceVersion"])
        ]

    def used_by_operator(self) -> set[tuple[str, str, str]]:
        """(verb, group, resource/subresource) of each request that the audit log has of it, refused ones as ``!verb``."""
        used = set()
        for line in (self.folder / "audit.log").read_text().splitlines():
            entry = json.loads(line)
            target = entry.get("objectRef")
            if entry["user"]["username"] != OPERATOR or not target:
                continue
            resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
            refused = "!" if entry.get("responseStatus", {}).get("code") == 403 else ""
            used.add((refused + entry["verb"], target.get("apiGroup", ""), resource))
        return used


@contextlib.contextmanager
def cluster(folder: Path, binaries: Path) -> Iterator[Cluster]:
    """Up, with DiffKeeper's own kinds and the operator's rights; everything is gone at the end."""
    made = Cluster(folder, binaries, free_port())
    with contextlib.ExitStack() as stack:
        _start_server(made, stack)
        _wait_until_ready(made)
        flags = (f"--kubeconfig={folder / 'admin.kubeconfig'}", f"--controllers={_CONTROLLERS}")
        run(
            stack,
            folder,
            binaries / "kube-controller-manager",
            *flags,
            "--leader-elect=false",
            "--port=0",
            "--secure-port=0",
        )
        for part in ("crds/sacs.yaml", "crds/switchovers.yaml", "crds/restores.yaml"):
            made.kubectl("apply", "-f", str(DEPLOY / part))
        for part in ("namespace.yaml", "rights.yaml"):
            made.kubectl("apply", "-f", str(DEPLOY / "operator" / part))
        made.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        yield made


def _start_server(made: Cluster, stack: contextlib.ExitStack) -> None:
    folder, client, peer = made.folder, free_port(), free_port()
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    groups = "system:serviceaccounts,system:serviceaccounts:diffkeeper-system,system:authenticated"
    (folder / "tokens.csv").write_text(
        f'admin-token,admin,1,system:masters\noperator-token,{OPERATOR},2,"{groups}"\n'
    )
    (folder / "audit.yaml").write_text(
        json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]})
    )
    for name in ("admin", "operator"):
        write_kubeconfig(folder / f"{name}.kubeconfig", made.address, f"{name}-token")
    etcd = f"http://127.0.0.1:{client}"
    run(
        stack,
        folder,
        made.binaries / "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    )
    run(
        stack,
        folder,
        made.binaries / "kube-apiserver",
        f"--etcd-servers={etcd}",
        f"--cert-dir={folder / 'certs'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={made.port}",
        "--insecure-port=0",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        f"--service-account-key-file={folder / 'sa.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-log-path={folder / 'audit.log'}",
        f"--audit-policy-file={folder / 'audit.yaml'}",
    )


def write_kubeconfig(path: Path, server: str, token: str) -> None:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "t", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "t", "context": {"cluster": "t", "user": "u", "namespace": "default"}}],
                "current-context": "t",
            }
        )
    )


def _wait_until_ready(made: Cluster) -> None:
    def ready() -> bool:
        try:
            # Its roles and the namespace default come a moment after it answers.
            return bool(made.find("/api/v1/namespaces/default")) and bool(
                made.find("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:discovery")
            )
        except (OSError, urllib.error.URLError):
            return False

    eventually(ready, STARTING_S)


def run(stack: contextlib.ExitStack, folder: Path, program: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A process that ends with ``stack``; what it says is in ``folder``."""
    with open(folder / f"{program.name}.log", "ab") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Operator:
    """The operator as a process, which can be killed and started again."""

    def __init__(self, cluster: Cluster, folder: Path, /, *, server: str = "", **settings: Any) -> None:
        self.folder = folder
        self._config = folder / "operator.json"
        self._config.write_text(
            json.dumps({"cluster": "east", "interval_s": 1.0, "lease_ttl_s": 4.0} | settings)
        )
        self._kubeconfig = folder / "kubeconfig"
        write_kubeconfig(self._kubeconfig, server or cluster.address, "operator-token")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        path = self.folder / "operator.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None, "it was started"
        return self._process.poll()

    def start(self) -> None:
        with open(self.folder / "operator.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "diffkeeper_operator.main", "--config", self._config],
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> int | None:
        """In order; its exit code."""
        if self._process is None:
            return None
        _end(self._process)
        return self._process.returncode


@contextlib.contextmanager
def operator(cluster: Cluster, folder: Path, /, **settings: Any) -> Iterator[Operator]:
    folder.mkdir(parents=True, exist_ok=True)
    running = Operator(cluster, folder, **settings)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        print(f"--- the operator said\n{running.log[-8000:]}")
        shutil.rmtree(folder, ignore_errors=True)
