"""What a user does by hand, with a program that comes and goes: run, run again, look, move, stop everything, go on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import leftovers

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(180)]

# What sqlite3(1) would do, without needing it.
ADD = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1] + "/notes.db")) as notes, notes:
    notes.execute("CREATE TABLE IF NOT EXISTS notes (text)")
    notes.execute("INSERT INTO notes VALUES (?)", sys.argv[2:])
    print(*[text for text, in notes.execute("SELECT text FROM notes ORDER BY rowid")])
"""


class User:
    def __init__(self, place: Path) -> None:
        self.directory = place / "deployment"
        self.notes = place / "notes"
        self.notes.mkdir()

    def dkctl(self, *arguments: str, expect: int = 0) -> str:
        name, *rest = arguments
        done = subprocess.run(
            [sys.executable, "-m", "dkctl.main", name, "--dir", str(self.directory), *rest],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if expect else done.stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.dkctl(*arguments, "--json"))
        return answer

    def add(self, site: str, text: str, *options: str) -> str:
        """Run the program once with its notes under care; what it printed."""
        program = (sys.executable, "-c", ADD, "{path}", text)
        return self.dkctl("run", "notes", "--site", site, *options, "--", *program).strip()


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


def test_a_program_that_comes_and_goes_finds_its_notes_wherever_it_runs(user: User) -> None:
    assert user.add("east", "milk", "--path", str(user.notes)) == "milk"
    assert user.add("east", "bread") == "milk bread"
    assert user.add("east", "salt", "--durability", "observe") == "milk bread salt"
    assert user.ask("verify", "notes")["ok"]
    assert user.ask("failover", "notes", "--to", "west", "--yes")["state"] == "done"
    assert user.add("west", "tea") == "milk bread salt tea"
    user.dkctl("down")
    user.dkctl("up", "--detach")
    assert user.add("west", "jam") == "milk bread salt tea jam"
    assert user.ask("failover", "notes", "--to", "east", "--yes")["state"] == "done"
    assert user.add("east", "oil") == "milk bread salt tea jam oil"
    verified = user.ask("verify", "notes")
    assert verified["ok"]
    assert [part["ok"] for part in [*verified["chains"], *verified["replicas"], verified["source"]]] == [
        True
    ] * 3


def test_what_must_not_be_done_is_refused_with_its_exit_code_and_changes_nothing(user: User) -> None:
    user.add("east", "milk", "--path", str(user.notes))
    before = user.ask("log", "notes")["frames"]
    run = ("run", "notes", "--site")
    for arguments, code, reason in (
        ((*run, "north", "--", "true"), 5, "unknown-site"),
        ((*run, "west", "--", "true"), 6, "led-elsewhere"),
        (("run", "No", "--site", "east", "--path", "/tmp", "--", "true"), 2, "bad-name"),
        (("run", "other", "--site", "east", "--path", str(user.notes), "--", "true"), 6, "path-captured"),
        (
            ("run", "other", "--site", "east", "--path", str(user.notes.parent), "--", "true"),
            6,
            "path-overlaps",
        ),
        (("run", "other", "--site", "east", "--path", "/nowhere", "--", "true"), 6, "path-missing"),
        (
            ("run", "other", "--site", "east", "--path", "/etc/hostname", "--", "true"),
            6,
            "path-not-directory",
        ),
        ((*run, "east", "--mode", "shared", "--", "true"), 6, "mode-differs"),
        ((*run, "east", "--", "/no/such/program"), 5, "no-program"),
        (("failover", "notes", "--to", "east", "--yes"), 6, "already-leads"),
        (("failover", "notes", "--to", "north", "--yes"), 5, "unknown-site"),
        (("failover", "notes", "--to", "west"), 6, "no-confirmation"),
        (("status", "nothing"), 5, "unknown-volume"),
        (("down", "--site", "north"), 5, "unknown-site"),
    ):
        assert f"cause: {reason}" in user.dkctl(*arguments, expect=code)
    assert user.ask("log", "notes")["frames"] == before
    assert user.ask("status", "notes")["leader"] == "east"
    assert user.ask("verify", "notes")["ok"]


def test_the_end_of_a_program_passes_through(user: User) -> None:
    where = ("--site", "east", "--path", str(user.notes))
    user.dkctl("run", "notes", *where, "--", "sh", "-c", "exit 42", expect=42)
    user.dkctl("run", "notes", *where, "--", "sh", "-c", "kill -9 $$", expect=-9)
    assert user.ask("status", "notes")["state"] == "released"
