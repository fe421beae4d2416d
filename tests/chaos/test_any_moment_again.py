"""A user goes back in time: looks, restores, finds the write that broke it, rolls back under a running program, and
undoes that too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import leftovers

from diffkeeper.lazy import trees
from dkctl import client

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(240)]

ADD = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1] + "/notes.db")) as notes, notes:
    notes.execute("CREATE TABLE IF NOT EXISTS notes (text)")
    notes.execute("INSERT INTO notes VALUES (?)", sys.argv[2:])
"""
# A program that stays: it says where it stands, and waits.
STAY = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "started").write_text("yes")
time.sleep(600)
"""
COUNT = """
import sqlite3, sys
notes = [text for text, in sqlite3.connect("notes.db").execute("SELECT text FROM notes")]
sys.exit("broken" in notes)
"""


class User:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.notes = place / "notes"
        self.notes.mkdir()
        self.env = {**os.environ, "DIFFKEEPER_DIR": str(place / "deployment")}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dkctl.main", *arguments]

    def dkctl(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.env,
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if expect else done.stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        at = arguments.index("--") if "--" in arguments else len(arguments)
        answer: dict[str, Any] = json.loads(self.dkctl(*arguments[:at], "--json", *arguments[at:]))
        return answer

    def add(self, text: str) -> str:
        """One more note; the position that has it."""
        path = ["--path", str(self.notes)] if text == "one" else []
        self.dkctl("run", "notes", "--site", "east", *path, "--", sys.executable, "-c", ADD, "{path}", text)
        return str(self.ask("log", "notes", "-n", "1")["frames"][0]["position"])


@pytest.fixture
def user() -> Iterator[User]:
    with tempfile.TemporaryDirectory(prefix="dk-") as name:
        user = User(Path(name))
        try:
            user.dkctl("up", "--detach")
            yield user
        finally:
            user.dkctl("down")
        assert leftovers.working_below(Path(name)) == []


def texts(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "notes.db")) as notes:
        return [text for (text,) in notes.execute("SELECT text FROM notes ORDER BY rowid")]


def test_any_moment_of_a_program_can_be_had_again(user: User) -> None:
    positions = [user.add(text) for text in ("one", "two", "broken", "four")]
    user.dkctl("tag", "notes", "good", "--at", positions[1])

    # To look.
    found = user.ask("log", "notes", "notes.db", "-n", "100")
    assert found["found"]["frames"] >= 4
    assert all(path["path"] == "notes.db" for frame in found["frames"] for path in frame["paths"])
    changed = user.ask("diff", "notes", "tag:good", "latest")
    [table] = next(one for one in changed["changes"] if one["path"] == "notes.db")["sqlite"]["tables"]
    assert [row["values"]["text"] for row in table["rows"]] == ["broken", "four"]

    # To have it elsewhere, only where nothing is in the way.
    there = user.place / "restored"
    restored = user.ask("restore", "notes", "--at", "tag:good", "--to", str(there))
    assert (restored["position"], texts(there)) == (positions[1], ["one", "two"])
    assert "target-not-empty" in user.dkctl("restore", "notes", "--to", str(there), expect=6)
    assert texts(there) == ["one", "two"]
    branch = user.ask("branch", "notes", "test1", "--at", "tag:good")
    assert texts(Path(branch["path"])) == ["one", "two"]
    at = user.ask("restore", "notes", "--at", "branch:test1", "--to", str(user.place / "again"))
    assert at["position"] == positions[1]
    user.dkctl("branch", "drop", "notes", "test1", "--yes")
    assert not Path(branch["path"]).exists()

    # To find what broke it.
    broke = user.ask("bisect", "notes", "--from", "tag:good", "--", sys.executable, "-c", COUNT)
    assert positions[1] < broke["bad"] <= positions[2]
    assert broke["delta"]["path"].startswith("notes.db")

    # To go back, under a running program, and forward again.
    program = subprocess.Popen(
        user.argv("run", "notes", "--site", "east", "--", sys.executable, "-c", STAY, "{path}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=user.env,
    )
    try:
        until(lambda: (user.notes / "started").exists())
        back = user.ask("rollback", "notes", "--to", "tag:good", "--yes")
        assert back["pid"] is not None
        assert texts(user.notes) == ["one", "two"]
        until(lambda: (user.notes / "started").exists())
        forward = user.ask("rollback", "notes", "--to", f"tag:{back['tag']}", "--yes", "--no-start")
        assert forward["pid"] is None
        assert texts(user.notes) == ["one", "two", "broken", "four"]
        assert user.ask("verify", "notes")["ok"] is True
    finally:
        program.wait(30)

    # What is not there is said, with what is.
    assert "the nearest kept" in user.dkctl("cat", "notes", "notes.db", "--at", "1.99999", expect=5)
    user.dkctl("restore", "notes", "--at", "yesterday", "--to", str(there), expect=2)

    # Nothing is left behind unsaid.
    past = user.place / "past"
    if trees.why_not_here(past) is None:
        user.dkctl("mount", "notes", str(past), "--at", "tag:good")
        with (past / "notes.db").open("rb"):
            assert "keeps its filler" in user.dkctl("down", expect=1)
        assert f"{past} is closed" in user.dkctl("down")
        assert not past.exists()


def test_a_program_that_is_stopped_as_soon_as_it_was_started_is_over_with_its_capture(user: User) -> None:
    user.add("one")
    control = client.Control.of(user.place / "deployment")
    body = {key: control.volume("notes")[key] for key in ("path", "durability", "policy", "mode")}
    for _ in range(3):
        control.attach("notes", {"site": "east", **body})
        until(lambda: control.volume("notes")["state"] == "capturing")
        assert control.start_program("notes")["pid"]
        control.stop_program("notes")
        until(lambda: control.volume("notes")["state"] == "released", 30)


def until(holds: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
