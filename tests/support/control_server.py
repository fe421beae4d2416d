"""A server that speaks control's admin API over real HTTP, answers what a test lays down, and remembers
what it was asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from diffkeeper.domain import errors

TOKEN = "a-token-of-tests"


@dataclass
class ControlServer:
    """``answers[METHOD path]`` is a document, an error to raise, or a list of either, of which the last
    stays.
    """

    directory: Path
    address: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)

    def answer(self, call: str) -> Any:
        laid = self.answers.get(call)
        if isinstance(laid, list):
            return laid.pop(0) if len(laid) > 1 else laid[0]
        return laid

    def bodies(self, call: str) -> list[dict[str, Any] | None]:
        return [body for asked, body in self.asked if asked == call]


STATUS = {"refused": 409, "not-found": 404, "unauthorised": 401, "misconfigured": 422, "timed-out": 504}


class _Handler(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        control = cast("_Server", self.server).control
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        call = f"{self.command} {urlsplit(self.path).path}"
        control.asked.append((call, body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            laid: Any = errors.Unauthorised("the token is not this deployment's", hint="read it again")
        else:
            laid = control.answer(call)
        if laid is None:
            laid = errors.NotFound(
                f"nothing is laid down for {call}", reason="unknown-volume", hint="dkctl status"
            )
        if isinstance(laid, errors.DiffKeeperError):
            self._send(STATUS.get(laid.family, 500), json.dumps({"error": laid.to_dict()}).encode())
        elif isinstance(laid, bytes):
            self._send(200, laid)
        else:
            self._send(200, json.dumps(laid).encode())

    do_GET = _serve
    do_POST = _serve
    do_PUT = _serve
    do_DELETE = _serve

    def _send(self, status: int, raw: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at ``asked``."""


class _Server(ThreadingHTTPServer):
    control: ControlServer


@contextmanager
def serve(directory: Path) -> Iterator[ControlServer]:
    """A control for the deployment in ``directory``, whose note and token are written as control writes
    them.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.control = ControlServer(directory, f"http://127.0.0.1:{server.server_port}")
    write_note(directory, server.control.address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.control
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_note(directory: Path, address: str, pid: int = 1, start_ticks: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    note = {
        "version": 1,
        "created_us": 1,
        "sites": {},
        "control_port": 1,
        "control": {"pid": pid, "start_ticks": start_ticks, "address": address},
    }
    (directory / "deployment.json").write_text(json.dumps(note))
    (directory / "token").write_text(TOKEN + "\n")


def site(name: str, state: str = "alive", leads: tuple[str, ...] = ()) -> dict[str, Any]:
    process = {
        "name": "nats",
        "pid": 11,
        "state": "running" if state == "alive" else "dead",
        "address": "",
        "log": "",
    }
    return {
        "site": name,
        "state": state,
        "detail": None,
        "age_ms": 12,
        "leads": list(leads),
        "processes": [process],
    }


def volume(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "volume": "orders",
        "state": "running",
        "detail": None,
        "leader": "east",
        "leader_state": "alive",
        "epoch": 1,
        "path": "/srv/orders",
        "durability": "remote",
        "ready": True,
        "operation": None,
        "base": {"files": 3, "bytes": 30, "files_total": 3, "bytes_total": 30, "done": True, "age_ms": 1},
        "level": {"asked": "remote", "met": True, "waiting_us": None},
        "positions": {"captured": "1.42", "stored": "1.42", "confirmed": {"west": "1.42"}, "age_ms": 3},
        "lag": {"frames": 0, "bytes": 0, "ms": 0, "age_ms": 3},
        "gaps": {"open": False, "total": 0, "last": None, "age_ms": 3},
        "fidelity": "exact",
        "probe": "bpf",
        "program": {"pid": 77, "running": True, "exit_code": None, "age_ms": 3},
        "loss_bound": {"frames": 0, "acknowledged_writes": 0, "text": "nothing acknowledged can be lost"},
        "sites": [
            {"site": "east", "role": "lead", "state": "leading", "path": "/srv/orders", "applied": None},
            {
                "site": "west",
                "role": "follow",
                "state": "following",
                "path": "/d/west",
                "base_complete": True,
                "journalled": "1.42",
                "applied": "1.41",
                "lag": {"frames": 1, "bytes": 2048, "ms": 7},
                "age_ms": 4,
            },
        ],
        "orphans": [],
    }
    return base | changes


def operation(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": "op-1",
        "kind": "failover",
        "volume": "orders",
        "from": "east",
        "to": "west",
        "epoch": 2,
        "planned": True,
        "force": False,
        "state": "done",
        "phase": "done",
        "detail": None,
        "error": None,
        "steps": [{"phase": "promise", "started_us": 1, "took_ms": 2.5, "outcome": "done", "detail": None}],
        "timings_ms": {"promise": 2.5, "promote": 8.0, "total": 30.0, "detect": None},
        "result": {"position": "2.43", "hash": "ab", "path": "/d/west", "pid": 88},
    }
    return base | changes
