"""dkctl with a person in front of it: questions, colours, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import control_server
from tests.support.control_server import ControlServer, operation, site, volume
from tests.support.terminals import Terminal

V = "/v1/volumes/orders"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        server.answers[f"GET {V}"] = volume()
        server.answers[f"POST {V}/failover"] = operation()
        server.answers["GET /v1/status"] = {"sites": [site("east"), site("west")], "volumes": [volume()]}
        yield server


def dkctl(control: ControlServer, *arguments: str) -> Terminal:
    environment = {**os.environ, "DIFFKEEPER_DIR": str(control.directory), "TERM": "xterm"}
    return Terminal([sys.executable, "-m", "dkctl.main", *arguments], environment)


@pytest.mark.parametrize(("answer", "code", "requests"), [("y\n", 0, 1), ("n\n", 6, 0), ("\n", 6, 0)])
def test_what_moves_traffic_is_asked_about(
    control: ControlServer, answer: str, code: int, requests: int
) -> None:
    with dkctl(control, "failover", "orders", "--to", "west") as terminal:
        terminal.wait_for("[y/N]")
        terminal.type(answer)
        assert terminal.end() == code
    assert len(control.bodies(f"POST {V}/failover")) == requests


@pytest.mark.parametrize(
    ("typed", "code", "requests"), [("orders\n", 0, 1), ("y\n", 6, 0), ("other\n", 6, 0)]
)
def test_what_may_lose_data_wants_the_name_typed(
    control: ControlServer, typed: str, code: int, requests: int
) -> None:
    loss = {"acknowledged_writes": None, "text": "at most 9 frames"}
    control.answers[f"GET {V}"] = volume(leader_state="dead", state="leaderless", loss_bound=loss)
    with dkctl(control, "failover", "orders", "--to", "west") as terminal:
        terminal.wait_for("Type orders to accept this loss")
        terminal.type(typed)
        assert terminal.end() == code
        assert "at most 9 frames" in terminal.seen
    assert len(control.bodies(f"POST {V}/failover")) == requests


def test_ctrl_c_at_a_question_changes_nothing(control: ControlServer) -> None:
    with dkctl(control, "failover", "orders", "--to", "west") as terminal:
        # Waiting for the answer begins a moment after the question is shown: a person would press it again.
        terminal.wait_for("[y/N]")
        while terminal.process.poll() is None:
            terminal.type("\x03")
            time.sleep(0.1)
        # 130 as a shell says it, or the signal itself, pressed again while the process was ending.
        assert terminal.process.returncode in (130, -signal.SIGINT)
    assert control.bodies(f"POST {V}/failover") == []


def test_ctrl_c_reaches_a_wrapped_program_exactly_once(control: ControlServer) -> None:
    program = (
        "import signal, sys, time\n"
        "count = 0\n"
        "def on(*_):\n"
        "    global count\n"
        "    count += 1\n"
        "signal.signal(signal.SIGINT, on)\n"
        "print('up', flush=True)\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "sys.exit(40 + count)\n"
    )
    control.answers[f"POST {V}/run"] = {
        "volume": volume(),
        "created": True,
        "path": "/srv/orders",
        "wrapper": ["env", "--"],
        "argv": [sys.executable, "-c", program],
        "env": {},
    }
    control.answers[f"POST {V}/release"] = {"volume": "orders", "position": "1.1", "hash": "ab"}
    with dkctl(control, "run", "orders", "--site", "east", "--path", "/srv/orders", "--", "env") as terminal:
        terminal.wait_for("up")
        terminal.type("\x03")
        assert terminal.end() == 41
    assert control.bodies(f"POST {V}/release") == [{"exit_code": 41}]


def test_the_base_is_shown_as_a_bar_that_is_wiped_at_its_end(control: ControlServer) -> None:
    base = {"files": 5, "bytes": 512, "files_total": 10, "bytes_total": 1024, "done": False, "age_ms": 1}
    behind = volume(ready=False, state="scanning", base=base)
    control.answers[f"POST {V}/attach"] = {"volume": behind, "created": True, "path": "/srv/orders"}
    control.answers[f"GET {V}"] = [behind, behind, volume()]
    with dkctl(control, "attach", "orders", "--site", "east", "--path", "/srv/orders") as terminal:
        assert terminal.end() == 0
    assert "50%" in terminal.seen
    assert terminal.seen.split("\x1b[K")[-1].startswith("/srv/orders is captured")


def test_status_on_a_terminal_can_be_watched_until_interrupted(control: ControlServer) -> None:
    control.answers["GET /v1/status"] = {"sites": [site("east")], "volumes": [], "operations": []}
    with dkctl(control, "status", "--watch", "--interval", "0.1") as terminal:
        terminal.wait_for("\x1b[H\x1b[2JAll is well")
        while len(control.asked) < 3:
            assert terminal.process.poll() is None
        terminal.type("\x03")
        assert terminal.end() == 130
