"""The life of a daemon, in a process of its own: readiness, signals, exit codes, one clear line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffkeeper import atomic_files, settings
from diffkeeper.domain import errors

BEGIN = """
import asyncio
from diffkeeper import service
from diffkeeper.domain import errors
async def main(scope):
"""
END = "\nservice.run_service('tested', main)\n"


def start(body: str, **environment: str) -> subprocess.Popen[str]:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + lines + END],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **environment),
    )


def outcome(body: str) -> tuple[int, str]:
    process = start(body)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("errors.Misconfigured('the broker says no', hint='ask it')", 2),
        ("errors.Corrupt('the broker says no', hint='ask it')", 3),
        ("errors.Unreachable('the broker says no', hint='ask it')", 4),
        ("errors.Fenced('the broker says no', hint='ask it')", 6),
    ],
)
def test_a_foreseen_error_ends_with_its_code_and_one_line(error: str, code: int) -> None:
    returned, err = outcome(f"raise {error}")
    assert returned == code
    assert err.count("\n") == 1 and "the broker says no" in err and "hint=" in err


def test_an_unforeseen_error_ends_with_its_traceback() -> None:
    returned, err = outcome("raise KeyError('surprise')")
    assert returned == 3
    assert "Traceback" in err and "surprise" in err


def test_a_part_that_fails_ends_the_service() -> None:
    body = """
async def part():
    raise errors.Misconfigured("the part is broken")
scope.spawn("part", part())
await scope.stopping.wait()
"""
    returned, err = outcome(body)
    assert returned == 2 and "the part is broken" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_winds_down_in_order_and_readiness_is_told(number: signal.Signals, tmp_path: Path) -> None:
    body = """
async def for_ever():
    await asyncio.sleep(600)
scope.spawn("part", for_ever())
scope.ready(port=1)
await scope.stopping.wait()
print("drained", flush=True)
"""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(address))
        listening.settimeout(20)
        process = start(body, NOTIFY_SOCKET=str(address))
        assert listening.recv(100) == b"READY=1"
        process.send_signal(number)
        assert listening.recv(100) == b"STOPPING=1"
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "drained\n"), err


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    body = """
scope.ready()
await scope.stopping.wait()
print("draining", flush=True)
await asyncio.sleep(600)
"""
    process = start(body)
    assert process.stderr is not None and process.stdout is not None
    while "event=ready" not in process.stderr.readline():
        pass
    process.terminate()
    assert process.stdout.readline() == "draining\n"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 3


class Known(settings.Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    ring_bytes: int
    site: str = "east"


@pytest.mark.parametrize(
    ("text", "word", "hint"),
    [
        ('{"ring_byts": 1}', "ring_byts", "'ring_bytes'"),
        ('{"ring_bytes": "many"}', "ring_bytes", "ring_bytes, site"),
        ('{"site": "east"}', "ring_bytes", "ring_bytes"),
        ("{", "truncated", ""),
    ],
)
def test_a_mistake_in_settings_is_named_with_a_suggestion(
    tmp_path: Path, text: str, word: str, hint: str
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(errors.Misconfigured, match=word) as caught:
        settings.load(path, Known)
    assert hint in caught.value.hint


def test_settings_are_read(tmp_path: Path) -> None:
    atomic_files.write_json(tmp_path / "settings.json", {"ring_bytes": 7})
    assert settings.load(tmp_path / "settings.json", Known) == Known(ring_bytes=7)
    with pytest.raises(errors.Misconfigured, match="cannot be read"):
        settings.load(tmp_path / "absent.json", Known)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_files.write_bytes(path, b"one")
    atomic_files.write_bytes(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="directory"):
        atomic_files.write_bytes(tmp_path, b"a directory is in the way")
    assert list(tmp_path.iterdir()) == [path]
