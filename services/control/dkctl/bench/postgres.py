"""pgbench against PostgreSQL uncaptured and captured at each durability level: rates as ratios.

The uncaptured rate is taken before and after the captured ones, without a probe loaded; the ratio is to
their mean, and the two are printed, so that a machine that drifts is seen.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diffkeeper import nats_server
from diffkeeper.domain import errors
from dkctl.bench import trials
from dkctl.bench.figures import Figure

USER = "postgres"
LEVELS = ("observe", "site", "remote")
TARGETS = {"observe": 0.95, "site": 0.5, "remote": None}
SCALE = 5
READY_TIMEOUT_S = 120.0
CONFIG = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 20
shared_buffers = 64MB
"""
Say = Callable[[str], None]


def folder() -> str | None:
    """Where the newest installed server keeps its programs; None without one, or without a user to run it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda path: path.parts[-3])
    if not found or (os.geteuid() == 0 and not any(user.pw_name == USER for user in pwd.getpwall())):
        return None
    return str(found[-1].parent)


def measure(place: Path, binaries: str, seconds: float, say: Say) -> list[Figure]:
    port = nats_server.free_port()
    template = place / "template"
    prepare(template, binaries, port)
    say("pgbench, uncaptured")
    before = uncaptured(place, template, binaries, port, seconds)
    rates = {}
    for level in LEVELS:
        say(f"pgbench, {level}")
        rates[level] = captured(place, template, binaries, port, seconds, level)
    say("pgbench, uncaptured again")
    after = uncaptured(place, template, binaries, port, seconds)
    alone = (before + after) / 2
    return [
        Figure("pgbench_uncaptured", alone, "tps", note=f"{before:,.0f} before, {after:,.0f} after"),
        *(
            Figure(
                f"pgbench_{level}_ratio",
                rate / alone,
                "",
                baseline=1.0,
                at_least=TARGETS[level],
                note=f"{rate:,.0f} tps",
            )
            for level, rate in rates.items()
        ),
    ]


def prepare(directory: Path, binaries: str, port: int) -> None:
    directory.mkdir()
    if os.geteuid() == 0:
        shutil.chown(directory, USER, USER)
    run([f"{binaries}/initdb", f"--pgdata={directory}", f"--username={USER}", "--auth=trust", "--no-sync"])
    with (directory / "postgresql.conf").open("a") as config:
        config.write(f"{CONFIG}port = {port}\n")
    server = subprocess.Popen(
        as_server_user([f"{binaries}/postgres", "-D", str(directory)]), stderr=subprocess.DEVNULL
    )
    try:
        wait_ready(binaries, port)
        run([*client(f"{binaries}/pgbench", port), "--initialize", f"--scale={SCALE}", "--quiet", "postgres"])
    finally:
        stop(server)


def uncaptured(place: Path, template: Path, binaries: str, port: int, seconds: float) -> float:
    directory = copy(template, place / f"uncaptured-{time.monotonic_ns()}")
    server = subprocess.Popen(
        as_server_user([f"{binaries}/postgres", "-D", str(directory)]), stderr=subprocess.DEVNULL
    )
    try:
        return rate(binaries, port, seconds)
    finally:
        stop(server)
        shutil.rmtree(directory)


def captured(place: Path, template: Path, binaries: str, port: int, seconds: float, level: str) -> float:
    volume = f"pgbench-{level}"
    directory = copy(template, place / volume)
    with trials.Trial(place / f"deployment-{level}") as trial:
        server = trial.run(
            volume,
            "east",
            directory,
            as_server_user([f"{binaries}/postgres", "-D", "{path}"]),
            level,
            place / f"{volume}.log",
        )
        try:
            wait_ready(binaries, port)
            trial.wait_following(volume, "west", READY_TIMEOUT_S)
            return rate(binaries, port, seconds)
        finally:
            stop(server)


def rate(binaries: str, port: int, seconds: float) -> float:
    wait_ready(binaries, port)
    text = run(
        [
            *client(f"{binaries}/pgbench", port),
            "--client=4",
            f"--time={max(1, round(seconds))}",
            "--no-vacuum",
            "postgres",
        ],
        timeout_s=seconds + 60,
    )
    found = re.search(r"^tps = ([0-9.]+)", text, re.MULTILINE)
    if found is None:
        raise errors.DiffKeeperError(f"pgbench gave no rate: {text}", reason="pgbench-failed")
    return float(found[1])


def client(name: str, port: int) -> list[str]:
    return [name, "--host=127.0.0.1", f"--port={port}", f"--username={USER}"]


def as_server_user(command: Sequence[str]) -> list[str]:
    """PostgreSQL refuses root: root starts it as its system user."""
    if os.geteuid() != 0:
        return list(command)
    user = pwd.getpwnam(USER)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", *command]


def run(command: Sequence[str], timeout_s: float = 300.0) -> str:
    done = subprocess.run(
        as_server_user(command), capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/"
    )
    if done.returncode != 0:
        raise errors.DiffKeeperError(
            f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}",
            reason="postgres-failed",
        )
    return done.stdout


def wait_ready(binaries: str, port: int) -> None:
    """Until a statement is answered, not only a connection taken."""
    ask = [*client(f"{binaries}/psql", port), "--no-psqlrc", "--command=SELECT 1", "postgres"]

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return subprocess.run(as_server_user(ask), capture_output=True, check=False, cwd="/").returncode == 0

    trials.wait("PostgreSQL answers", answers, READY_TIMEOUT_S)


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGINT asks for a fast shutdown; ``dkctl run`` and setpriv pass it on."""
    if server.poll() is None:
        server.send_signal(2)
    server.wait(READY_TIMEOUT_S)


def copy(source: Path, target: Path) -> Path:
    run_as_root = ["cp", "--archive", str(source), str(target)]
    subprocess.run(run_as_root, check=True, capture_output=True)
    return target
