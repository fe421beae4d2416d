"""What every program under test offers to the rounds: how to prepare, start, speak to and examine it.

The programs are unmodified and know nothing of DiffKeeper. A victim speaks to its program by the program's
own protocol on a loopback port that stays the same at whichever site the program runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from tests.victims import operations

ANSWER_TIMEOUT_S = 30.0
POLL_S = 0.05


class RejectedError(Exception):
    """The program answered that the operation was not done."""


class Client(Protocol):
    """One connection. An OSError means that the connection ended and the outcome is not known."""

    def put(self, key: str, payload: bytes) -> None:
        """Store; returns once the program said that it is durable, raises RejectedError when it said no."""

    def abort(self, key: str, payload: bytes) -> None:
        """Send the data and have the program drop it: always raises RejectedError or OSError."""

    def close(self) -> None: ...


class Victim(Protocol):
    name: str
    port: int

    def lacking(self) -> str | None:
        """Why this machine cannot run it, or None."""

    def prepare(self, directory: Path) -> None:
        """Fill an empty directory with the first state."""

    def command(self, directory: str) -> list[str]:
        """What to execute; it stays in the foreground. ``directory`` may be a placeholder."""

    def connect(self) -> Client:
        """A new connection; raises OSError while the program does not take any."""

    def found(self) -> operations.Found:
        """Everything the running program holds."""

    def examine(self, directory: Path) -> list[str]:
        """What the program's own tools find wrong with its state, while it runs; empty when all is well."""

    def side_load(self) -> contextlib.AbstractContextManager[None]:
        """More load beside the recorded clients."""


def wait_until(what: str, ready: Callable[[], bool], timeout_s: float) -> None:
    """Poll with an end; the failure names what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(POLL_S)


def wait_ready(victim: Victim, timeout_s: float = 30.0) -> None:
    def answers() -> bool:
        try:
            victim.connect().close()
        except OSError as error:
            if str(error) not in told:
                told.add(str(error))
                print(f"{victim.name}: {error}")
            return False
        return True

    told: set[str] = set()
    wait_until(f"{victim.name} takes connections", answers, timeout_s)


def needs(victim: Victim) -> None:
    """Skip with the reason where the program is not installed, and fail where it must be (in CI)."""
    reason = victim.lacking()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, folder: str | None = None) -> str | None:
    """The path of an installed program, also looked for in ``folder``."""
    return shutil.which(name) or (shutil.which(name, path=folder) if folder else None)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise ConnectionResetError("the program closed the connection")
        received += piece
    return bytes(received)
