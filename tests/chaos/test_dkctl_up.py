"""dkctl up with the real control: what it refuses, what it starts, what outlives a failed start (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import leftovers
from tests.support.terminals import Terminal

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(120)]


def dkctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dkctl.main", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize(
    ("sites", "code", "reason"),
    [("east", 6, "too-few-sites"), ("east,East", 2, "bad-name"), ("east,east", 2, "bad-name")],
)
def test_a_start_that_control_refuses_ends_with_its_reason(
    tmp_path: Path, sites: str, code: int, reason: str
) -> None:
    done = dkctl("up", "--detach", "--sites", sites, "--dir", str(tmp_path / "d"))
    assert done.returncode == code
    assert f"cause: {reason}" in done.stderr
    assert leftovers.working_below(tmp_path) == []


def test_a_directory_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    done = dkctl("up", "--detach", "--dir", str(tmp_path))
    assert done.returncode == 6
    assert "cause: dir-not-empty" in done.stderr
    assert (tmp_path / "letter").read_text() == "dear"


def test_a_deployment_goes_up_once_is_adopted_after_control_died_and_goes_down(tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "d"))
    try:
        up = dkctl("up", "--detach", "--json", *where)
        assert up.returncode == 0, up.stderr
        assert [site["state"] for site in json.loads(up.stdout)["sites"]] == ["alive", "alive"]
        again = dkctl("up", "--detach", *where)
        assert (again.returncode, "runs already" in again.stdout) == (0, True)
        assert dkctl("up", "--detach", "--sites", "east,north", *where).returncode == 6
        note = json.loads((tmp_path / "d" / "deployment.json").read_text())
        before = {name: one["pid"] for name, one in note["sites"]["east"]["processes"].items()}
        os.kill(note["control"]["pid"], signal.SIGKILL)
        assert dkctl("status", *where).returncode == 4
        adopted = dkctl("up", "--detach", "--json", *where)
        assert adopted.returncode == 0, adopted.stderr
        after = json.loads((tmp_path / "d" / "deployment.json").read_text())
        assert {name: one["pid"] for name, one in after["sites"]["east"]["processes"].items()} == before
    finally:
        down = dkctl("down", *where)
    assert down.returncode == 0, down.stderr
    assert leftovers.working_below(tmp_path) == []
    assert "Nothing of the deployment" in dkctl("down", *where).stdout


def test_down_takes_over_what_a_dead_control_left_and_stops_it(tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "d"))
    try:
        assert dkctl("up", "--detach", *where).returncode == 0
        note = json.loads((tmp_path / "d" / "deployment.json").read_text())
        os.kill(note["control"]["pid"], signal.SIGKILL)
    finally:
        down = dkctl("down", *where)
    assert (down.returncode, "taking over" in down.stderr) == (0, True), down.stderr
    assert leftovers.working_below(tmp_path) == []


def test_ctrl_c_stops_a_deployment_in_the_foreground_in_order(tmp_path: Path) -> None:
    with Terminal([sys.executable, "-m", "dkctl.main", "up", "--dir", str(tmp_path / "d")]) as terminal:
        terminal.wait_for("Ctrl-C stops it.")
        terminal.type("\x03")
        assert terminal.end() == 0
    assert leftovers.working_below(tmp_path) == []
