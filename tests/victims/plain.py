"""A victim's program without DiffKeeper: what the checkers are tried on, and the twin of a captured run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.victims import victims


@contextlib.contextmanager
def running(victim: victims.Victim, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, ready; killed with everything it started when the block ends."""
    with (directory.parent / f"{victim.name}.log").open("ab") as log:
        program = subprocess.Popen(
            victim.command(str(directory)),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            victims.wait_ready(victim)
            yield program
        finally:
            kill(program, directory)


def kill(program: subprocess.Popen[bytes], directory: Path) -> None:
    """SIGKILL for the program and all that works in the directory: PostgreSQL's children leave its group."""
    if program.poll() is None:
        program.kill()
    program.wait()
    for pid in working_in(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    victims.wait_until(f"no process works in {directory}", lambda: not working_in(directory), 10)


def working_in(directory: Path) -> list[int]:
    """Processes that have ``directory`` or something below it as working directory or open file."""
    inside = str(directory.resolve())
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and any(target == inside or target.startswith(inside + "/") for target in _holds(entry))
    ]


def _holds(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield os.readlink(process / "cwd")
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(descriptor.path)
