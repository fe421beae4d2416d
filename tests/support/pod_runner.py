"""What a kubelet does for one pod, as far as a test needs it: the files and directories of its containers at the paths of the
manifest, each command with the rights the manifest gives and no other, an address of its own, and the probes told to the API server.

There are no images: every container sees the machine's own programs, read-only, and DiffKeeper's commands beside them.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.kubernetes import Cluster, eventually

from diffkeeper import nats_server

_PROJECT = Path(__file__).parents[2]
# What container runtimes leave to a container that says nothing, as far as a program in one uses it.
_USUAL_RIGHTS = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"]
_STATUS = "application/strategic-merge-patch+json"

# In a mount namespace of its own: what containers have at fixed paths is made in layers above the machine's directories.
_CONTAINER = r"""
set -eu
scratch=$1; limits=$2; mounts=$3; shift 3
mount -t tmpfs none "$scratch"
for layered in etc var; do
    mkdir "$scratch/$layered" "$scratch/$layered-work"
    mount -t overlay -o "lowerdir=/$layered,upperdir=$scratch/$layered,workdir=$scratch/$layered-work" none "/$layered"
done
mount -t tmpfs none /run
mount -t proc none /proc
if mountpoint -q /sys/fs/bpf; then umount -l /sys/fs/bpf; fi
while read -r source target how; do
    mkdir -p "$target"
    mount --bind "$source" "$target"
    if [ "$how" = ro ]; then mount -o remount,bind,ro "$target"; fi
done <"$mounts"
mount -o remount,bind,ro /
exec setpriv $limits -- "$@"
"""


class PodNetwork:
    """A cable from the machine to a namespace: ``host`` at this end, ``pod`` at the other."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.namespace, self._cable = f"dkp-{mark}", f"dkp{mark}"
        net = f"10.78.{int(mark[:2], 16)}.{int(mark[2:4], 16) & 0xFC}"
        base, _, last = net.rpartition(".")
        self.host, self.pod = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"

    def make(self) -> None:
        _run("ip", "netns", "add", self.namespace)
        _run(
            "ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace
        )
        _run("ip", "addr", "add", f"{self.host}/30", "dev", self._cable)
        _run("ip", "link", "set", self._cable, "up")
        for words in ("link set lo up", f"addr add {self.pod}/30 dev eth0", "link set eth0 up"):
            _run("ip", "-n", self.namespace, *words.split())

    def remove(self) -> None:
        if Path("/run/netns", self.namespace).exists():
            _run("ip", "netns", "del", self.namespace)


@contextlib.contextmanager
def network() -> Iterator[PodNetwork]:
    """Skips the test where no namespace can be made."""
    if os.geteuid() != 0:
        pytest.skip("the containers of a pod are started as root")
    made = PodNetwork()
    try:
        try:
            made.make()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
        yield made
    finally:
        made.remove()


class PodRunner:
    """One pod at a time; ``volumes`` outlive it, as claims do. ``images``: the command of an image, where the manifest gives none."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        at: PodNetwork,
        namespace: str,
        name: str,
        images: dict[str, list[str]] | None = None,
    ) -> None:
        self._cluster = cluster
        self._folder = folder
        self._at = at
        self._path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self._namespace = namespace
        self._images = images or {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # The process that holds the pod's namespace of processes, where its containers share one.
        self._sandbox: subprocess.Popen[bytes] | None = None
        # Rights that this node does not give, whatever the manifest says.
        self.withheld: set[str] = set()
        self.pod: dict[str, Any] = {}

    def start(self) -> None:
        """Every container of the pod, once the controllers have made it."""
        self.pod = eventually(self._living)
        # From now on it is not gone before its node says so.
        binding = {
            "metadata": {"name": self.pod["metadata"]["name"]},
            "target": {"kind": "Node", "name": "here"},
        }
        self._cluster.call(
            "POST", f"{self._path}/binding", {"apiVersion": "v1", "kind": "Binding", **binding}
        )
        spec = self.pod["spec"]
        assert not spec.get("initContainers"), "this API server is too old for native sidecars"
        for volume in spec["volumes"]:
            self._make_volume(volume)
        self._sandbox = _new_processes() if spec.get("shareProcessNamespace") else None
        for container in spec["containers"]:
            self.start_container(container["name"])

    def start_container(self, name: str) -> None:
        container = next(one for one in self.pod["spec"]["containers"] if one["name"] == name)
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._command(container),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._environment(container),
                # A container is no session's member but its own: within one, processes may wake each other.
                start_new_session=True,
            )

    def kill_container(self, name: str) -> None:
        process = self._running.pop(name)
        _signal(process, signal.SIGKILL, inside=self._sandbox is not None)
        process.wait()

    def tell(self) -> bool:
        """Ask the probes, and write what they say into the pod's status; whether the pod is ready."""
        containers = self.pod["spec"]["containers"]
        ready = all(self._is_ready(container) for container in containers)
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": self._at.pod, "conditions": [condition]}
        self._cluster.call("PATCH", f"{self._path}/status", {"status": status}, _STATUS)
        return ready

    def bring_up(self) -> None:
        self.start()
        try:
            eventually(self.tell)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def end(self) -> None:
        """As a kubelet ends a pod: SIGTERM, patience, SIGKILL."""
        for process in self._running.values():
            _signal(process, signal.SIGTERM, inside=self._sandbox is not None)
        for process in self._running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL, inside=self._sandbox is not None)
                process.wait()
        self._running.clear()
        if self._sandbox is not None:
            _signal(self._sandbox, signal.SIGKILL, inside=True)
            self._sandbox.wait()
            self._sandbox = None

    def forget(self) -> None:
        """Tell the API server that the pod it wants gone has ended."""
        self._cluster.call("DELETE", self._path, {"gracePeriodSeconds": 0})

    def is_condemned(self) -> bool:
        pod = self._cluster.find(self._path)
        return pod is not None and "deletionTimestamp" in pod["metadata"]

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-4000:]}"
            for path in sorted(self._folder.glob("*.log"))
        )

    def _living(self) -> Any:
        pod = self._cluster.find(self._path)
        return pod if pod is not None and "deletionTimestamp" not in pod["metadata"] else None

    def _is_ready(self, container: dict[str, Any]) -> bool:
        process = self._running.get(container["name"])
        if process is None or process.poll() is not None:
            return False
        probe = container.get("readinessProbe", {}).get("httpGet")
        if probe is None:
            return True
        try:
            url = f"http://{self._at.pod}:{probe['port']}{probe['path']}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def volume(self, name: str) -> Path:
        return self._folder / "volumes" / name

    def _make_volume(self, volume: dict[str, Any]) -> None:
        place = self.volume(volume["name"])
        place.mkdir(parents=True, exist_ok=True)
        files: dict[str, bytes] = {}
        if "configMap" in volume:
            path = f"/api/v1/namespaces/{self._namespace}/configmaps/{volume['configMap']['name']}"
            files = {name: text.encode() for name, text in self._cluster.call("GET", path)["data"].items()}
        elif "secret" in volume:
            files = self._secret(volume["secret"]["secretName"])
        if "persistentVolumeClaim" in volume:
            # As provisioners of node-local claims do, so that a program of any user can write.
            place.chmod(0o777)
        for name, content in files.items():
            (place / name).write_bytes(content)
            (place / name).chmod(volume.get("secret", {}).get("defaultMode", 0o644))

    def _secret(self, name: str) -> dict[str, bytes]:
        found = self._cluster.call("GET", f"/api/v1/namespaces/{self._namespace}/secrets/{name}")
        return {key: base64.b64decode(text) for key, text in found["data"].items()}

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        """Of the test's own only what finds the programs."""
        kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        told: dict[str, str] = {}
        for entry in container.get("env", []):
            key = entry.get("valueFrom", {}).get("secretKeyRef")
            if key is None:
                given = re.sub(r"\$\((\w+)\)", lambda name: told.get(name[1], name[0]), entry["value"])
            else:
                given = self._secret(key["name"])[key["key"]].decode()
            told[entry["name"]] = given
        return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", **told}

    def _command(self, container: dict[str, Any]) -> list[str]:
        scratch = self._folder / "scratch" / container["name"]
        scratch.mkdir(parents=True, exist_ok=True)
        mounts = self._folder / f"{container['name']}.mounts"
        mounts.write_text("".join(f"{line}\n" for line in self._mounts(container)))
        return [
            *("nsenter", f"--net=/run/netns/{self._at.namespace}", *self._processes(), "--"),
            *("unshare", "--mount", "--propagation=private", "--"),
            *("sh", "-c", _CONTAINER, "sh", str(scratch), self._rights(container), str(mounts)),
            *_found(container.get("command") or self._images[container["image"]]),
            *container.get("args", []),
        ]

    def _processes(self) -> list[str]:
        return [] if self._sandbox is None else [f"--pid=/proc/{self._sandbox.pid}/ns/pid_for_children"]

    def _mounts(self, container: dict[str, Any]) -> Iterator[str]:
        for mount in container.get("volumeMounts", []):
            source = self.volume(mount["name"]) / mount.get("subPath", "")
            if not source.exists():
                source.mkdir()
                source.chmod(0o777)
            yield f"{source} {mount['mountPath']} {'ro' if mount.get('readOnly') else 'rw'}"

    def _rights(self, container: dict[str, Any]) -> str:
        context = container.get("securityContext", {})
        named = context.get("capabilities", {})
        kept = [] if "ALL" in named.get("drop", []) else _USUAL_RIGHTS
        added = [right for right in [*kept, *named.get("add", [])] if right not in self.withheld]
        bounds = ",".join(["-all", *(f"+{right.lower()}" for right in added)])
        words = [f"--bounding-set={bounds}", "--inh-caps=-all", "--ambient-caps=-all"]
        if context.get("allowPrivilegeEscalation") is False:
            words.append("--no-new-privs")
        if user := context.get("runAsUser", self.pod["spec"]["securityContext"].get("runAsUser")):
            words += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return " ".join(words)

    def _log(self, container: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{container}.log"


def _found(command: list[str]) -> list[str]:
    """A command of DiffKeeper as this interpreter runs it; any other as it is."""
    scripts = tomllib.loads((_PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    if command[0] == "nats-server":
        return [nats_server.find_binary(), *command[1:]]
    if command[0] not in scripts:
        return command
    module, _, function = scripts[command[0]].partition(":")
    started = f"import sys; from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-c", started, *command[1:]]


def _new_processes() -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(["unshare", "--pid", "--fork", "--", "sleep", "infinity"])
    # A namespace takes nobody in before it has its first process.
    eventually(lambda: _children(holder))
    return holder


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    try:
        return [
            int(child)
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _signal(process: subprocess.Popen[bytes], number: signal.Signals, *, inside: bool) -> None:
    """To what runs in the container: who is to enter a namespace of processes starts that there, and waits outside for it."""
    children = _children(process) if inside else []
    if children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[0], number)
    elif process.poll() is None:
        process.send_signal(number)


def _run(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, text=True, check=True)
