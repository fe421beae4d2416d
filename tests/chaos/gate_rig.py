"""What the gate's tests share: an agent process that can be killed, and programs under the run wrapper."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WAIT_S = 20.0


def until(what: str, holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Poll until ``holds``; fail with a sentence when it does not in time."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {within_s} s"
        time.sleep(0.01)


class GateRig:
    """``gate.sock``, a volume directory, the word that lets barriers through, and what was started here."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.volume = base / "vol"
        self.volume.mkdir()
        self.socket = base / "gate.sock"
        self.word = base / "go"
        self._started: list[subprocess.Popen[str]] = []

    def start_agent(self) -> subprocess.Popen[str]:
        agent = self._start(
            [
                str(Path(__file__).with_name("gate_agent.py")),
                str(self.socket),
                str(self.word),
                str(self.volume),
            ]
        )
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        return agent

    def start_program(
        self, *argv: str, options: tuple[str, ...] = (), volume: str = "v"
    ) -> subprocess.Popen[str]:
        """``argv`` under the wrapper, with its standard streams on pipes."""
        return self._start(self.wrapper_command(*argv, options=options, volume=volume))

    def wrapper_command(self, *argv: str, options: tuple[str, ...] = (), volume: str = "v") -> list[str]:
        return [
            "-m",
            "diffkeeper_capture.run_wrapper",
            "--agent-socket",
            str(self.socket),
            "--volume",
            volume,
            *options,
            "--",
            *argv,
        ]

    def run(
        self, *argv: str, options: tuple[str, ...] = (), volume: str = "v"
    ) -> subprocess.CompletedProcess[str]:
        program = self.start_program(*argv, options=options, volume=volume)
        out, err = program.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(argv, program.returncode, out, err)

    def seen(self) -> tuple[int, int, int]:
        """(calls, barriers, waiting) as the living agent counts them."""
        path = Path(str(self.socket) + ".seen")
        words = path.read_text().split() if path.exists() else []
        return (int(words[0]), int(words[1]), int(words[2])) if len(words) == 3 else (0, 0, 0)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=WAIT_S)

    def _start(self, arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        )
        self._started.append(process)
        return process


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GateRig]:
    made = GateRig(tmp_path)
    try:
        yield made
    finally:
        made.close()
