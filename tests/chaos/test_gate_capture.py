"""The whole capture of a site, with a real nats-server and a real agent: what fsync promised is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.brokers import Brokers
from tests.support.capture_rig import FIRST, CaptureRig, digest

pytestmark = pytest.mark.disaster

PROBES = ["bpf", "watch"]

WRITER = """
import os, sys
f = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for n in range(int(sys.argv[2])):
    os.write(f, f"record {n}\\n".encode())
    os.fsync(f)
    print(n, flush=True)
"""


@pytest.fixture
async def rig(tmp_path: Path, brokers: Brokers) -> AsyncIterator[CaptureRig]:
    made = CaptureRig(tmp_path, brokers)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
        print(made.agent_log() if (tmp_path / "agent.log").exists() else "")


def need(probe: str) -> None:
    from diffkeeper_capture.bpf_probe import BpfProbe

    why = BpfProbe.why_not() if probe == "bpf" else None
    if why is not None:
        pytest.skip(why)


@pytest.mark.parametrize("probe", PROBES)
async def test_what_was_there_and_what_is_written_is_in_the_stream(rig: CaptureRig, probe: str) -> None:
    need(probe)
    (rig.volume / "old").mkdir()
    (rig.volume / "old" / "file").write_bytes(os.urandom(300_000))
    (rig.volume / "link").symlink_to("old/file")
    await rig.start_agent()
    await rig.attach(probe=probe)
    status = await rig.until_capturing()
    assert (status["probe"], status["base"]["done"]) == (probe, True)
    (rig.volume / "new").write_bytes(b"x" * 100_000)
    (rig.volume / "old" / "file").rename(rig.volume / "moved")
    (rig.volume / "link").unlink()
    with (rig.volume / "moved").open("r+b") as file:
        file.seek(1000)
        file.write(b"overwritten")
        file.truncate(200_000)
    receipt = await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    assert receipt["level"] == "site" and "stream:east" in receipt["holders"]
    assert await rig.replayed() == digest(rig.volume)


async def test_an_fsync_returns_only_when_the_stream_has_what_it_covers(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, str(rig.volume), "30")
    assert program.stdout is not None
    while line := await asyncio.to_thread(program.stdout.readline):
        replayed = b"".join(
            delta.data for frame in await rig.stream() for delta in frame.columns() if delta.op == 2
        )
        assert f"record {int(line)}\n".encode() in replayed
    assert await asyncio.to_thread(program.wait, 20) == 0
    status = await rig.status()
    assert status["barriers"]["total"] == 30
    assert status["fidelity"] == "exact" and status["gaps"]["total"] == 0


async def test_level_remote_waits_for_another_site(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach(durability="remote")
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, str(rig.volume), "3")

    async def waits() -> bool:
        waiting = (await rig.status())["barriers"]["waiting"]
        return bool(waiting) and waiting[0]["call"] == "fsync" and waiting[0]["level"] == "remote"

    await rig.until("the call waits", waits)
    await asyncio.sleep(0.3)
    assert program.poll() is None
    west = asyncio.create_task(rig.confirm())
    assert await asyncio.to_thread(program.wait, 20) == 0
    status = await rig.status()
    assert list(status["confirmed"]) == ["west"]
    west.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await west


@pytest.mark.parametrize("probe", PROBES)
async def test_the_broker_killed_under_load_loses_nothing(rig: CaptureRig, probe: str) -> None:
    need(probe)
    await rig.start_agent()
    await rig.attach(probe=probe)
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, str(rig.volume), "40")
    assert program.stdout is not None
    await asyncio.to_thread(program.stdout.readline)
    await rig.brokers.servers["east"].kill()
    await asyncio.sleep(0.5)
    assert program.poll() is None
    await rig.brokers.restart("east")
    assert await asyncio.to_thread(program.wait, 40) == 0
    assert await rig.replayed() == digest(rig.volume)


async def test_sqlite_replayed_after_its_receipts_is_whole(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    write = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/db", isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=full")
db.execute("create table t (n integer primary key, s text)")
for n in range(60):
    db.execute("insert into t values (?, ?)", (n, "x" * 500))
    print(n, flush=True)
"""
    program = rig.run("python3", "-c", write, str(rig.volume))
    assert program.stdout is not None
    acknowledged = -1
    while acknowledged < 40:
        acknowledged = int(await asyncio.to_thread(program.stdout.readline))
    replica = rig.base / "replica"
    await rig.replayed_into(replica)
    program.kill()
    await asyncio.to_thread(program.wait, 20)
    database = sqlite3.connect(replica / "db")
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    (rows,) = database.execute("select count(*) from t where n <= ?", (acknowledged,)).fetchone()
    database.close()
    assert rows == acknowledged + 1


async def test_start_and_handover_stop_the_program_and_end_the_epoch(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach(durability="remote")
    west = asyncio.create_task(rig.confirm())
    await rig.until_capturing()
    says_bye = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda *_: (open("last", "w").write("bye"), sys.exit(0)))
open("began", "w").close()
while True: time.sleep(1)
"""
    started = await rig.call(
        "POST",
        "/v1/volumes/v/start",
        {"argv": ["python3", "-c", says_bye], "cwd": str(rig.volume), "stop_signal": "INT"},
    )
    assert (await rig.status())["program"] == {"pid": started["pid"], "running": True, "exit_code": None}

    async def began() -> bool:
        return (rig.volume / "began").exists()

    await rig.until("the program runs", began)
    again = await rig.error_of(rig.call("POST", "/v1/volumes/v/start", {"argv": ["true"]}))
    assert again.reason == "program-running"
    refused = await rig.error_of(rig.call("POST", "/v1/volumes/v/release", {}))
    assert refused.reason == "program-running"
    body = {"successor": "west", "grace_s": 5, "timeout_s": 20}
    answer = await rig.call("POST", "/v1/volumes/v/handover", body)
    last = (await rig.stream())[-1]
    assert (str(last.position), last.header.successor) == (answer["position"], "west")
    assert (rig.volume / "last").read_text() == "bye"
    assert await rig.replayed() == digest(rig.volume)
    status = await rig.status()
    assert (status["state"], status["program"]["running"], status["program"]["exit_code"]) == (
        "released",
        False,
        0,
    )
    repeated = await rig.call("POST", "/v1/volumes/v/handover", body)
    assert {key: repeated[key] for key in ("position", "hash", "tree_state")} == {
        key: answer[key] for key in ("position", "hash", "tree_state")
    }
    # Rolled back by control: the same site goes on under the next epoch, and finds what changed meanwhile.
    (rig.volume / "meanwhile").write_text("unwatched")
    await rig.attach(
        epoch=2,
        parent={"position": answer["position"], "hash": answer["hash"]},
        tree_state=answer["tree_state"],
    )
    await rig.until_capturing()
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "remote"})
    assert await rig.replayed() == digest(rig.volume)
    west.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await west


async def test_a_program_that_cannot_be_executed_is_refused_with_its_reason(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    error = await rig.error_of(rig.call("POST", "/v1/volumes/v/start", {"argv": ["/no/such/program"]}))
    assert error.family == "refused" and "there is no such file" in error.message
    assert (await rig.call("POST", "/v1/volumes/v/start", {"argv": ["sleep", "60"]}))["pid"] > 0


async def test_a_started_program_gets_its_own_environment_and_nothing_of_ours(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    (rig.base / "its" / "json").mkdir(parents=True)
    (rig.base / "its" / "json" / "__init__.py").write_text("raise SystemExit('not for the wrapper')")
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(rig.base / "its"), "ORDER": "7"}
    body = {"argv": ["sh", "-c", f"env > {rig.volume}/env; exec sleep 60"], "env": given}
    await rig.call("POST", "/v1/volumes/v/start", body)

    async def told() -> bool:
        return (rig.volume / "env").exists() and "ORDER" in (rig.volume / "env").read_text()

    await rig.until("the program has run", told)
    seen = dict(line.split("=", 1) for line in (rig.volume / "env").read_text().splitlines())
    assert {key: value for key, value in seen.items() if key not in ("PWD", "_", "OLDPWD", "SHLVL")} == given


async def test_what_must_not_be_captured_is_refused(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    (rig.volume / "inside").mkdir()
    (rig.base / "file").touch()
    await rig.attach()
    assert (await rig.attach())["epoch"] == 1  # the same order again
    body = {"epoch": 1, "parent": FIRST, "durability": "site"}

    async def reason(path: Path, volume: str = "w", **changes: object) -> str:
        call = rig.call("POST", f"/v1/volumes/{volume}/attach", {**body, "path": str(path), **changes})
        return (await rig.error_of(call)).reason

    assert await reason(rig.volume) == "path-captured"
    assert await reason(rig.volume / "inside") == "path-inside-volume"
    assert await reason(rig.base) == "path-around-volume"
    assert await reason(rig.base / "missing") == "path-missing"
    assert await reason(rig.base / "file") == "not-a-directory"
    assert await reason(rig.volume, "v", epoch=2) == "already-captured"
    assert await reason(rig.base / "capture" / "volumes") == "path-is-own"
    (rig.base / "free").mkdir()
    assert await reason(rig.base / "free", "Bad_Name") == "bad-name"
    assert await reason(rig.base / "free", parent={"position": "1.5", "hash": "00"}) == "bad-hash"
    assert await reason(rig.base / "free", durability="firm") == "bad-level"
    assert await reason(rig.base / "free", surprise=1) == "bad-request"
    missing = await rig.error_of(rig.call("POST", "/v1/volumes/x/sync", {"level": "site"}))
    assert (missing.family, missing.reason) == ("not-found", "no-such-volume")


async def test_a_directory_that_vanishes_is_a_fault_and_deletes_nothing(rig: CaptureRig) -> None:
    need("bpf")
    (rig.volume / "kept").write_text("kept")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    before = await rig.replayed()
    rig.volume.rename(rig.base / "elsewhere")
    rig.volume.mkdir()

    async def failed() -> bool:
        return bool((await rig.status())["state"] == "failed")

    await rig.until("the fault is seen", failed)
    assert await rig.replayed() == before
    error = await rig.error_of(rig.call("POST", "/v1/volumes/v/sync", {"level": "site"}))
    assert error.family == "misconfigured"


async def test_a_second_writer_fences_the_first_and_ends_its_program(rig: CaptureRig) -> None:
    need("bpf")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, str(rig.volume), "1000000")
    assert program.stdout is not None
    await asyncio.to_thread(program.stdout.readline)
    await rig.fence(epoch=2)

    async def fenced() -> bool:
        return bool((await rig.status())["state"] == "fenced")

    await rig.until("the first writer is fenced", fenced)
    assert await asyncio.to_thread(program.wait, 20) != 0
    assert (await rig.stream())[-1].position.epoch == 2
