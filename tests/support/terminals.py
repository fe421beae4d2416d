"""A process on a terminal of its own, as when a person types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from types import TracebackType

WAIT_S = 60.0


class Terminal:
    """``command`` as the foreground process of a new session on a new terminal."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        # setsid(1) makes its standard input the controlling terminal, so that Ctrl-C becomes a signal.
        self.process = subprocess.Popen(
            ["setsid", "-c", *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def wait_for(self, text: str) -> None:
        """Read until ``text`` has been shown."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert self._read(deadline), f"{text!r} was not shown: {self.seen!r}"

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        return self.process.wait(timeout=WAIT_S)

    def _read(self, deadline: float) -> bool:
        """One piece of output; False at the end of it. Fails when nothing comes in time."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came: {self.seen!r}"
        try:
            piece = os.read(self._ours, 65_536)
        except OSError:
            return False  # Linux: EIO once nobody has the other end open
        self.seen += piece.decode("utf-8", "replace")
        return bool(piece)
