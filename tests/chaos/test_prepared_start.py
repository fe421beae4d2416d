"""Programs started in advance: they begin at the word and never without it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from diffkeeper.domain.receipts import Level
from diffkeeper_capture.program import Command, Launcher

pytestmark = pytest.mark.disaster


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    # Nobody listens there: a wrapper that was given its word says so and ends.
    return Launcher(tmp_path / "no.sock", tmp_path / "logs", 0)


def command(tmp_path: Path, **changes: object) -> Command:
    known: dict[str, object] = {
        "argv": ["touch", str(tmp_path / "began")],
        "env": {"PATH": os.environ["PATH"]},
        "cwd": "/",
    }
    return Command(**(known | changes))  # type: ignore[arg-type]


async def test_prepared_program_never_begins_without_the_word(tmp_path: Path, launcher: Launcher) -> None:
    root = tmp_path / "volume"
    root.mkdir()
    ended = await launcher.prepare("v", root, Level.SITE, command(tmp_path), wait=True)
    assert ended is not None and not ended.done()
    launcher.forget("v")
    async with asyncio.timeout(60):
        await ended
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("wait", [True, False])
async def test_start_of_the_same_goes_on_with_what_was_prepared(
    tmp_path: Path, launcher: Launcher, wait: bool
) -> None:
    root = tmp_path / "volume"
    root.mkdir()
    ended = await launcher.prepare("v", root, Level.SITE, command(tmp_path), wait=wait)
    assert await launcher.start("v", root, Level.SITE, command(tmp_path)) is ended
    assert ended is not None
    async with asyncio.timeout(60):
        assert await ended == 125
    assert "the capture agent does not answer" in launcher.tail()


async def test_start_of_something_else_leaves_what_was_prepared(tmp_path: Path, launcher: Launcher) -> None:
    root = tmp_path / "volume"
    root.mkdir()
    first = await launcher.prepare("v", root, Level.SITE, command(tmp_path), wait=True)
    second = await launcher.start("v", root, Level.SITE, command(tmp_path, argv=["true"]))
    assert first is not None and second is not first
    async with asyncio.timeout(60):
        await first
        await second
    third = await launcher.prepare("v", root, Level.SITE, command(tmp_path), wait=True)
    root.rename(tmp_path / "moved")
    root.mkdir()  # the replica was built anew meanwhile
    fourth = await launcher.start("v", root, Level.SITE, command(tmp_path))
    assert third is not None and fourth is not third
    async with asyncio.timeout(60):
        await third
        await fourth
    assert not (tmp_path / "began").exists()


async def test_program_that_begins_inside_of_its_volume_is_not_prepared(
    tmp_path: Path, launcher: Launcher
) -> None:
    (tmp_path / "volume" / "sub").mkdir(parents=True)
    inside = command(tmp_path, cwd=str(tmp_path / "volume" / "sub"))
    assert await launcher.prepare("v", tmp_path / "volume", Level.SITE, inside, wait=True) is None
