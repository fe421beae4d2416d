"""dkctl run: the program in front, its signals, its end, and what control is told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import control_server
from tests.support.control_server import ControlServer, operation, volume

from diffkeeper.domain import errors

V = "/v1/volumes/orders"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        server.answers[f"POST {V}/release"] = {"volume": "orders", "position": "1.9", "hash": "ab"}
        server.answers[f"GET {V}"] = volume()
        yield server


def start(control: ControlServer, *command: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """dkctl run as a process; the wrapper is env(1), which becomes the program."""
    control.answers[f"POST {V}/run"] = {
        "volume": volume(),
        "created": True,
        "path": "/srv/orders",
        "wrapper": ["env", "--"],
        "argv": list(command),
        "env": {"PATH": os.environ["PATH"], "DIFFKEEPER_VOLUME": "orders"},
    }
    line = [
        "run",
        "orders",
        "--dir",
        str(control.directory),
        "--site",
        "east",
        "--path",
        "/srv/orders",
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "dkctl.main", *line, "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_exit_code_and_the_output_pass_through_and_control_is_told(control: ControlServer) -> None:
    process = start(control, "sh", "-c", 'echo "$DIFFKEEPER_VOLUME"; echo err >&2; exit 42')
    assert process.communicate(timeout=30) == ("orders\n", "err\n")
    assert process.returncode == 42
    assert control.bodies(f"POST {V}/release") == [{"exit_code": 42}]


def test_the_program_reads_what_dkctl_gets(control: ControlServer) -> None:
    process = start(control, "cat")
    assert process.communicate("through\n", timeout=30)[0] == "through\n"


def test_control_is_told_what_is_needed_to_start_the_program_elsewhere(control: ControlServer) -> None:
    process = start(control, "true", options=("--durability", "site", "--policy", "degrade"))
    process.communicate(timeout=30)
    body = control.bodies(f"POST {V}/run")[0]
    assert body is not None
    assert (body["argv"], body["cwd"], body["uid"]) == (["true"], str(Path.cwd()), os.getuid())
    assert (body["durability"], body["policy"], body["path"]) == ("site", "degrade", "/srv/orders")
    assert body["env"]["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_program_that_a_signal_ends_ends_dkctl_by_the_same_signal(
    control: ControlServer, number: int
) -> None:
    process = start(control, "sh", "-c", f"kill -{int(number)} $$")
    process.communicate(timeout=30)
    assert process.returncode == -number
    assert control.bodies(f"POST {V}/release") == [{"exit_code": 128 + number}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_sent_to_dkctl_reaches_the_program_which_decides(
    control: ControlServer, number: int
) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    process = start(
        control, "sh", "-c", f"trap 'echo got; exit 7' {name}; echo up; while :; do sleep 0.05; done"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "got\n"
    assert process.returncode == 7


def test_python_signal_habits_are_not_inherited(control: ControlServer) -> None:
    process = start(control, "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    out, _ = process.communicate(timeout=30)
    masks = {line.split(":")[0]: int(line.split(":")[1], 16) for line in out.splitlines()}
    # Signals 32 and 33 are the C library's own.
    assert {name: mask & ~(0b11 << 31) for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}


def test_a_volume_that_moved_meanwhile_is_said_and_not_released(control: ControlServer) -> None:
    control.answers[f"GET {V}"] = [volume(operation="op-1"), volume(leader="west", epoch=2)]
    control.answers["GET /v1/operations/op-1"] = operation()
    process = start(control, "true")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "orders was moved to west (epoch 2)" in err
    assert control.bodies(f"POST {V}/release") == []


@pytest.mark.parametrize("state", ["stopped", "dead"])
def test_a_program_that_died_with_its_site_leaves_the_volume_to_a_failover(
    control: ControlServer, state: str
) -> None:
    process = start(control, "sh", "-c", "kill -9 $$", options=("--no-wait",))
    control.answers[f"GET {V}"] = volume(leader_state=state, state="leaderless")
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert "dkctl failover orders --to SITE" in err
    assert control.bodies(f"POST {V}/release") == []


def test_a_release_that_fails_is_told_and_leaves_the_programs_exit_code(control: ControlServer) -> None:
    control.answers[f"POST {V}/release"] = errors.Refused("the agent is gone", reason="gone", hint="")
    process = start(control, "sh", "-c", "exit 3")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "could not be released" in err
    assert "the agent is gone" in err


def test_a_refused_run_starts_no_program(control: ControlServer, tmp_path: Path) -> None:
    process = start(control, "touch", str(tmp_path / "ran"))
    process.communicate(timeout=30)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    refused = start(control, "touch", str(tmp_path / "ran"))
    control.answers[f"POST {V}/run"] = errors.Refused("held by east", reason="volume-held", hint="", pid=5)
    _, err = refused.communicate(timeout=30)
    assert refused.returncode == 6
    assert "cause: volume-held (pid=5)" in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("mode", "code"), [(None, 5), (0o644, 2)])
def test_a_program_that_cannot_be_executed_is_found_out_before_anything_is_captured(
    control: ControlServer, tmp_path: Path, mode: int | None, code: int
) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    process = start(control, str(program))
    process.communicate(timeout=30)
    assert process.returncode == code
    assert control.asked == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_program_waits_for_its_base_and_a_signal_then_releases_the_volume(
    control: ControlServer, tmp_path: Path, number: int
) -> None:
    slow: dict[str, Any] = volume(ready=False, state="scanning")
    control.answers[f"GET {V}"] = slow
    process = start(control, "touch", str(tmp_path / "ran"))
    control.answers[f"POST {V}/run"]["volume"] = slow
    while len(control.bodies(f"GET {V}")) < 3:
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert control.bodies(f"POST {V}/release") == [{"exit_code": None}]
    assert not (tmp_path / "ran").exists()


def test_no_wait_starts_the_program_before_its_base_is_safe(control: ControlServer) -> None:
    process = start(control, "sh", "-c", "exit 5", options=("--no-wait",))
    control.answers[f"POST {V}/run"]["volume"] = volume(ready=False, state="scanning")
    process.communicate(timeout=30)
    assert process.returncode == 5
