"""``dkctl bench history``: what the log of every write costs beside full copies and frames one by one, and how
long it takes until any moment of it is there again.

The loads are SQLite with a rollback journal, SQLite with a WAL, and pgbench. The pair of the log is a full copy
at each barrier, which is what snapshots without sharing would cost, and git, restic and borg where they are installed,
given the same moments one after the other.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffkeeper import nats_server
from dkctl import when
from dkctl.bench import figures, lazily, postgres, snapshots, trials
from dkctl.bench.figures import Figure

MOMENTS = 8
SNAPSHOTS = 6
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
    notes = [f"{tool} is not installed: no pair of snapshots" for tool in snapshots.missing()]
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
    for tool in snapshots.TOOLS:
        if tool not in snapshots.missing():
            made += _paired(control, name, tool, found, folder, trial, say)
    return made


def _paired(
    control: Any, name: str, tool: str, found: dict[str, Any], folder: Path, trial: trials.Trial, say: Say
) -> list[Figure]:
    """The same span kept as snapshots by another program, and its last moment brought back by both."""
    say(f"{name}: {tool} at {SNAPSHOTS} moments")
    first, last, stream = found["from"], found["to"], max(1, found["bytes"]["stream"])
    places = [first, *_spread(control, name, first, last, SNAPSHOTS - 2), last]

    def lay(at: str, into: Path) -> None:
        trial.dkctl("restore", name, "--at", at, "--to", str(into))

    kept = snapshots.measure(tool, folder / f"{tool}-{name}", places, lay)
    into = folder / f"{name}-whole"
    began = time.monotonic()
    when.fill(control, name, into, [("when", last)])
    restore_s = time.monotonic() - began
    shutil.rmtree(into)
    return [
        Figure(
            f"{name}_{tool}_of_{SNAPSHOTS}_moments",
            kept.grown / stream,
            "times",
            note=f"{kept.grown} bytes beside every write in {stream}",
        ),
        Figure(
            f"{name}_restore_beside_{tool}", restore_s, "s", baseline=kept.restore_s, at_most=kept.restore_s
        ),
    ]


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
