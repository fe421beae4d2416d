"""The demo, told to its end, or interrupted at a random moment: true to its word, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import leftovers

from dkctl import daemon

ROUNDS = 4
# From before the first process to after the failover.
LATEST_S = 18.0
SHORT = ("--seconds", "2")
END_S = 90.0

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(4 * END_S)]

Noted = dict[int, int]


@pytest.fixture
def place() -> Iterator[Path]:
    """Shorter than tmp_path: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dk-") as name:
        yield Path(name)


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--dir", str(place), *SHORT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def note_processes(place: Path, noted: Noted) -> None:
    """Remember (pid, start time) of every process that a deployment below ``place`` has written down."""
    for path in place.glob("*/deployment/deployment.json"):
        try:
            note = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # the demo is putting it away
        processes = [one for site in note["sites"].values() for one in site["processes"].values()]
        processes += [note["control"]] if note["control"] else []
        noted.update({one["pid"]: one["start_ticks"] for one in processes})


def assert_nothing_left(place: Path, noted: Noted) -> None:
    assert leftovers.naming(place) == []
    assert [pid for pid, ticks in noted.items() if daemon.is_running(pid, ticks)] == []
    assert leftovers.working_below(place) == []
    assert str(place) not in Path("/proc/self/mounts").read_text()
    assert list(place.iterdir()) == []


def test_the_demo_holds_what_it_promises(place: Path) -> None:
    demo = start(place)
    noted: Noted = {}
    deadline = time.monotonic() + END_S
    while demo.poll() is None and time.monotonic() < deadline:
        note_processes(place, noted)
        time.sleep(0.1)
    if demo.poll() is None:
        demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=END_S)
    assert demo.returncode == 0, said
    assert "All of it holds." in said
    assert len(noted) >= 7, "control, and three processes at each of two sites"
    assert_nothing_left(place, noted)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_an_interrupt_at_any_moment_leaves_no_process_no_mount_and_no_file(place: Path, number: int) -> None:
    seed = int(os.environ["DK_SEED"]) if "DK_SEED" in os.environ else secrets.randbelow(2**32)
    # Spread over the rounds, so that a few of them see every part of the story.
    moment = (number + random.Random(seed).random()) * LATEST_S / ROUNDS
    print(f"seed {seed}: interrupt after {moment:.3f} s")
    demo = start(place)
    noted: Noted = {}
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and demo.poll() is None:
        note_processes(place, noted)
        time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))
    note_processes(place, noted)
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=END_S)
    print(said)
    # -SIGINT: before Python could listen; 0: it was over already.
    assert demo.returncode in (130, -signal.SIGINT, 0), said
    assert "had to be killed" not in said
    assert_nothing_left(place, noted)
