"""The product as the demo sees it: ``dkctl`` with ``--json``, and nothing behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# How long an interrupted dkctl may take to put things in order before it is killed.
INTERRUPT_GRACE_S = 30.0


class DkctlFailed(Exception):
    """dkctl ended with a code that the demo did not expect."""

    def __init__(self, arguments: tuple[str, ...], code: int, said: str) -> None:
        super().__init__(f"dkctl {' '.join(arguments)} ended with code {code}:\n{said.strip()}")
        self.code = code


class Dkctl:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # The dkctl of this Python, whatever $PATH says; as a module it also works from a source tree.
        self._program = [sys.executable, "-m", "dkctl.main"]

    def ask(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Run one command to its end; its answer as JSON. An interrupt lets dkctl end in its own way
        first.
        """
        process = subprocess.Popen(
            [*self._program, *arguments, "--json", "--dir", str(self.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, said = process.communicate()
        except BaseException:
            _interrupt(process)
            raise
        if process.returncode not in codes:
            raise DkctlFailed(arguments, process.returncode, said)
        answer: dict[str, Any] = json.loads(out)
        return answer

    def run(
        self, volume: str, site: str, path: Path, log: Path, command: list[str], options: list[str]
    ) -> subprocess.Popen[bytes]:
        """``dkctl run`` in the background, its output in a file."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [
                    *(*self._program, "run", volume, "--dir", str(self.directory)),
                    *("--site", site, "--path", str(path), *options, "--", *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=environment(os.environ),
            )


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What the program of the demo gets: no more than it needs, because it is remembered for a start
    elsewhere.
    """
    return {
        name: ours[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV") if name in ours
    }


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=INTERRUPT_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
