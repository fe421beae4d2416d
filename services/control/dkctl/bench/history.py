"""``dkctl bench history``: what the log of every write costs beside full copies and frames one by one, and how
long it takes until any moment of it is there again.

The loads are SQLite with a rollback journal, SQLite with a WAL, and pgbench. The pair of the log is a full copy
at each barrier, which is what snapshots without sharing would cost, and git where it is installed, given the
same moments one after the other.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffkeeper import nats_server
from dkctl import when
from dkctl.bench import figures, lazily, postgres, trials
from dkctl.bench.figures import Figure

MOMENTS = 8
GIT_MOMENTS = 6
_SQLITE = """
import random, sqlite3, sys, time
path, mode, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
db = sqlite3.connect(path + "/bank.db", isolation_level=None)
db.execute(f"pragma journal_mode = {mode}")
db.execute("create table accounts (id integer primary key, balance integer, note text)")
db.execute("begin")
rng = random.Random(1)
db.executemany("insert into accounts values (?, 0, ?)", ((n, rng.randbytes(40).hex()) for n in range(20000)))
db.execute("commit")
until = time.monotonic() + seconds
while time.monotonic() < until:
    db.execute("begin")
    for _ in range(3):
        db.execute("update accounts set balance = balance + ? where id = ?", (rng.randrange(100), rng.randrange(20000)))
    db.execute("commit")
"""
Say = Callable[[str], None]


def measure(folder: Path, binaries: str | None, seconds: float, say: Say) -> figures.Report:
    found: list[Figure] = []
    notes = [] if shutil.which("git") else ["git is not installed: no pair of snapshots"]
    notes += [f"{tool} is not installed: no pair" for tool in ("restic", "borg") if not shutil.which(tool)]
    for mode in ("delete", "wal"):
        say(f"SQLite, journal_mode {mode}")
        path = folder / f"sqlite-{mode}"
        path.mkdir()
        argv = [sys.executable, "-c", _SQLITE, "{path}", mode, f"{seconds:g}"]
        found += _load(folder, f"sqlite-{mode}", path, argv, None, say)
    if binaries is None:
        notes.append("PostgreSQL is not installed, or was left out: no pgbench")
    else:
        say("pgbench")
        port = nats_server.free_port()
        path = folder / "pgbench"
        postgres.prepare(path, binaries, port)
        server = postgres.as_server_user([f"{binaries}/postgres", "-D", "{path}"])
        found += _load(folder, "pgbench", path, server, lambda: postgres.rate(binaries, port, seconds), say)
    at_once, why_not = lazily.measure(folder, say)
    if why_not is not None:
        notes.append(f"no directory is filled while it is used here: {why_not}")
    return figures.Report("history", [*found, *at_once], faults=[], notes=notes)


def _load(
    folder: Path, name: str, path: Path, argv: Sequence[str], drive: Callable[[], float] | None, say: Say
) -> list[Figure]:
    with trials.Trial(folder / f"deployment-{name}") as trial:
        program = trial.run(name, "east", path, argv, "site", folder / f"{name}.log")
        if drive is None:
            program.wait()
        else:
            drive()
            postgres.stop(program)
        trials.wait("the replica has it all", lambda: _is_whole(trial, name), 120)
        return [*_sizes(trial, name, folder, say), *_times(trial, name, folder, say)]


def _is_whole(trial: trials.Trial, name: str) -> bool:
    """The release of the capture says where the log ends."""
    status = trial.control().volume(name)
    end = (status.get("positions") or {}).get("captured")
    journalled = [site.get("journalled") for site in status["sites"] if site["site"] == "west"]
    return status["state"] == "released" and end is not None and journalled == [end]


def _sizes(trial: trials.Trial, name: str, folder: Path, say: Say) -> list[Figure]:
    control = trial.control()
    found = control.history(name, "measure")
    sizes: dict[str, int] = found["bytes"]
    told = f"{found['barriers']} barriers, {found['deltas']} deltas, {sizes['stream']} bytes"
    made = [
        Figure(
            f"{name}_smaller_than_full_copies",
            sizes["full_copies"] / max(1, sizes["stream"]),
            "times",
            at_least=250,
            note=told,
        ),
        Figure(f"{name}_smaller_than_frames_alone", sizes["alone"] / max(1, sizes["stream"]), "times"),
        Figure(f"{name}_frames_with_reference", sizes["alone"] / max(1, sizes["reference"]), "times"),
    ]
    if shutil.which("git"):
        say(f"{name}: git at {GIT_MOMENTS} moments")
        size = _git(control, name, found["from"], found["to"], folder / f"git-{name}", trial)
        made.append(
            Figure(
                f"{name}_git_of_{GIT_MOMENTS}_moments",
                size / max(1, sizes["stream"]),
                "times",
                note=f"{size} bytes beside every write in {sizes['stream']}",
            )
        )
    return made


def _git(control: Any, name: str, first: str, last: str, folder: Path, trial: trials.Trial) -> int:
    """What git needs for some moments of the same span beyond the first, packed as well as it can."""
    tree = folder / "tree"
    sizes: list[int] = []
    places = [first, *_spread(control, name, first, last, GIT_MOMENTS - 2), last]
    for at in places:
        shutil.rmtree(tree, ignore_errors=True)
        trial.dkctl("restore", name, "--at", at, "--to", str(tree))
        git = [
            "git",
            f"--git-dir={folder}/git",
            f"--work-tree={tree}",
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
        ]
        if not sizes:
            _quietly([*git, "init"])
        _quietly([*git, "add", "--all"])
        _quietly([*git, "commit", "--quiet", "--allow-empty", "--message", at])
        _quietly([*git, "gc", "--quiet", "--prune=now"])
        sizes.append(sum(path.stat().st_size for path in (folder / "git").rglob("*") if path.is_file()))
    shutil.rmtree(folder)
    return sizes[-1] - sizes[0]


def _quietly(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def _spread(control: Any, name: str, first: str, last: str, count: int) -> list[str]:
    """Kept positions between two, chosen at random with a fixed seed."""
    low, high = (int(position.split(".")[1]) for position in (first, last))
    rows = control.history(name, "log", [("after", first), ("limit", "10000")])["frames"]
    places = [row["position"] for row in rows if low < int(row["position"].split(".")[1]) < high]
    picked = random.Random(1).sample(places, min(count, len(places)))
    return sorted(picked, key=lambda position: int(position.split(".")[1]))


def _times(trial: trials.Trial, name: str, folder: Path, say: Say) -> list[Figure]:
    control = trial.control()
    say(f"{name}: {MOMENTS} moments")
    report = control.history(name, "")
    first, last = report["first"]["position"], report["last"]["position"]
    took_s, gigabytes = [], 0.0
    for at in _spread(control, name, first, last, MOMENTS):
        into = folder / f"{name}-moment"
        began = time.monotonic()
        head = when.fill(control, name, into, [("when", at)])
        took_s.append(time.monotonic() - began)
        gigabytes = max(gigabytes, head["bytes"] / 1e9)
        shutil.rmtree(into)
    began = time.monotonic()
    rows = control.history(name, "log", [("path", "*"), ("limit", "1000")])
    log_s = time.monotonic() - began
    return [
        Figure(
            f"{name}_moment_materialised_max",
            max(took_s, default=0.0),
            "s",
            at_most=2.0 + gigabytes,
            note=f"{len(took_s)} moments of {gigabytes * 1000:.0f} MB",
        ),
        Figure(
            f"{name}_log_by_path", log_s, "s", at_most=1.0, note=f"{rows['found']['deltas']} deltas in all"
        ),
    ]
