"""What dkctl reads about processes it did not start: the note, the log, /proc."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support import control_server

from diffkeeper.domain import errors
from dkctl import daemon, deployments


def ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_process_is_known_by_number_and_start_time() -> None:
    pid = os.getpid()
    assert daemon.is_running(pid, ticks(pid))
    assert not daemon.is_running(pid, ticks(pid) + 1)


def test_a_process_that_ended_does_not_run_even_before_it_is_waited_for() -> None:
    child = subprocess.Popen(["true"])
    started = ticks(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not daemon.is_running(child.pid, started)
    child.wait()
    assert not daemon.is_running(child.pid, started)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['level=error event="in use by process 7" family=refused reason=dir-busy hint=later'],
            "in use by process 7",
        ),
        (['level=error event="a \\"quoted\\" one" family=refused reason=x'], 'a "quoted" one'),
        (
            ["level=error event=first family=a reason=b", 'level=info event="x"', "level=error failed"],
            "first",
        ),
    ],
)
def test_the_last_error_of_a_log_is_found(tmp_path: Path, lines: list[str], message: str) -> None:
    log = tmp_path / daemon.LOG
    log.parent.mkdir()
    log.write_text("an old line\n")
    start = daemon.log_size(tmp_path)
    log.write_text("an old line\n" + "\n".join(lines))
    error = daemon.ended(6, tmp_path, start)
    assert error.message == message


def test_a_control_that_ended_without_a_reason_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / daemon.LOG
    log.parent.mkdir()
    log.write_text("Traceback\nImportError: no module\n")
    error = daemon.ended(1, tmp_path, 0)
    assert "ImportError: no module" in error.message
    assert str(log) in error.hint


def test_a_deployment_is_read_from_its_note(tmp_path: Path) -> None:
    assert deployments.find(tmp_path / "none") is None
    control_server.write_note(tmp_path, "http://127.0.0.1:1", pid=9, start_ticks=3)
    found = deployments.need(tmp_path)
    assert (found.address, found.control_pid, found.token) == ("http://127.0.0.1:1", 9, control_server.TOKEN)
    assert list(found.processes()) == [deployments.Process("control", 9, 3)]


def test_a_note_without_a_control_has_no_address(tmp_path: Path) -> None:
    control_server.write_note(tmp_path, "x")
    note = json.loads((tmp_path / "deployment.json").read_text()) | {"control": None}
    (tmp_path / "deployment.json").write_text(json.dumps(note))
    assert deployments.need(tmp_path).address is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"control": 5}'])
def test_a_note_that_makes_no_sense_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    control_server.write_note(tmp_path, "x")
    (tmp_path / "deployment.json").write_text(text)
    with pytest.raises(errors.Corrupt):
        deployments.find(tmp_path)
    assert (tmp_path / "deployment.json").read_text() == text
