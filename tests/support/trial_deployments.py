"""A deployment for a test, in a directory of its own, driven through dkctl; nothing of it is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffkeeper.domain import errors
from dkctl.bench import trials

Starter = Callable[[], trials.Trial]


@pytest.fixture
def deployment_folder() -> Iterator[Path]:
    """Reachable by an unprivileged program, which tmp_path is not; kept when DK_KEEP is set."""
    folder = Path(tempfile.mkdtemp(prefix="dk-test-"))
    folder.chmod(0o755)
    yield folder
    if os.environ.get("DK_KEEP"):
        print(f"kept: {folder}")
        return
    shutil.rmtree(folder)


@pytest.fixture
def deployment(deployment_folder: Path) -> Iterator[trials.Trial]:
    """Two sites, up; at the end they are down, and no process of them is left."""
    directory = deployment_folder / "deployment"
    try:
        with trials.Trial(directory) as trial:
            yield trial
            print("volumes at the end:", trial.control().status()["volumes"])
    except errors.DiffKeeperError as error:
        print_logs(directory)
        pytest.fail(f"{error.message}\n{error.hint}")
    assert working_below(deployment_folder) == []


def print_logs(directory: Path, last_lines: int = 40) -> None:
    for log in sorted((directory / "logs").glob("*")):
        print(f"--- {log.name}\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-last_lines:]))


def working_below(directory: Path) -> list[int]:
    """Processes that have something below ``directory`` as working directory or open file."""
    inside = f"{directory.resolve()}/"
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and any(f"{target}/".startswith(inside) for target in _holds(entry))
    ]


def _holds(process: Path) -> Iterator[str]:
    """What a process works on; nothing once it has ended."""
    links = [process / "cwd"]
    try:
        links += (process / "fd").iterdir()
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue
