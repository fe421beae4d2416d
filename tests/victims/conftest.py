"""Folders that an unprivileged program can reach, and the seeds of the rounds."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import orphans


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Like tmp_path, with a way in for the user that PostgreSQL runs as."""
    folder = Path(tempfile.mkdtemp(prefix="dk-victim-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def orphans_are_reaped() -> Iterator[None]:
    with orphans.adopted():
        yield


@pytest.fixture
def base_seed() -> int:
    """``DK_SEED`` when it is set: the seed that a failed round printed."""
    return int(os.environ["DK_SEED"]) if "DK_SEED" in os.environ else secrets.randbelow(1_000_000_000)
