"""Drivers and checkers on the programs alone: after kill -9 they pass, on a doctored state they must not."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.victims import load, operations, plain, postgres_victim, redis_victim, sqlite_victim, victims

MAKERS: dict[str, Callable[[], victims.Victim]] = {
    "sqlite-wal": lambda: sqlite_victim.SqliteVictim("wal"),
    "sqlite-delete": lambda: sqlite_victim.SqliteVictim("delete"),
    "postgres": postgres_victim.PostgresVictim,
    "redis": redis_victim.RedisVictim,
    # Never rewritten: the end of its file is the end of the history.
    "redis-in-one-file": lambda: redis_victim.RedisVictim(rewrite_from="64mb"),
}


@pytest.mark.disaster
@pytest.mark.parametrize("name", MAKERS)
def test_killed_plain_program_keeps_what_it_acknowledged(
    name: str, open_folder: Path, base_seed: int
) -> None:
    victim, directory, history = _killed_under_load(name, open_folder, base_seed)
    with plain.running(victim, directory):
        found = victim.found()
        verdict = operations.judge(history.all(), found)
        assert verdict.problems() == []
        assert victim.examine(directory) == []
        assert verdict.acknowledged >= 50
        assert history.count(operations.Outcome.FAIL) > 0
        lighter = dict(list(found.items())[1:])
        assert operations.judge(history.all(), lighter).problems(), "the checker sees one lost key"


@pytest.mark.disaster
def test_checker_sees_rows_deleted_behind_the_program(open_folder: Path, base_seed: int) -> None:
    victim, directory, history = _killed_under_load("sqlite-wal", open_folder, base_seed)
    with contextlib.closing(sqlite3.connect(directory / "entries.db")) as database, database:
        database.execute("DELETE FROM entries WHERE rowid % 20 = 7")
    with plain.running(victim, directory):
        verdict = operations.judge(history.all(), victim.found())
    assert verdict.missing
    assert verdict.out_of_order, "rows after the deleted ones are there"


@pytest.mark.disaster
def test_sqlite_checker_sees_a_page_that_did_not_arrive(open_folder: Path, base_seed: int) -> None:
    victim, directory, _history = _killed_under_load("sqlite-delete", open_folder, base_seed)
    database = directory / "entries.db"
    pages = database.stat().st_size // 4096
    with database.open("r+b") as file:
        for page in range(2, min(pages, 12)):
            file.seek(page * 4096)
            file.write(bytes(4096))
    with plain.running(victim, directory):
        problems = victim.examine(directory)
    assert any("integrity_check" in problem for problem in problems)


@pytest.mark.disaster
def test_redis_checker_sees_a_tail_that_was_cut(open_folder: Path, base_seed: int) -> None:
    victim, directory, history = _killed_under_load("redis-in-one-file", open_folder, base_seed)
    (tail,) = (directory / "appendonlydir").glob("*.incr.aof")
    with tail.open("r+b") as file:
        # Far more than what four clients had under way.
        file.truncate(tail.stat().st_size - 10_000)
    assert victim.examine(directory), "redis-check-aof sees the torn command"
    with plain.running(victim, directory):
        assert operations.judge(history.all(), victim.found()).missing


@pytest.mark.disaster
@pytest.mark.parametrize("relation", ["recorded", "recorded_pkey"])
def test_postgres_checker_sees_pages_of_an_earlier_time(
    relation: str, open_folder: Path, base_seed: int
) -> None:
    """Stale pages have right checksums: only missing rows, or amcheck of table against index, tell."""
    victim, directory, history = _killed_under_load("postgres", open_folder, base_seed)
    stale = _pages_of(relation, victim, directory)
    with plain.running(victim, directory), load.Load(victim, history, "r1", base_seed) as clients:
        clients.wait_for(acknowledged=20)
    current = _pages_of(relation, victim, directory)
    with current.path.open("r+b") as file:
        file.write(stale.content)
    with plain.running(victim, directory):
        missing = operations.judge(history.all(), victim.found()).missing
        complaints = victim.examine(directory)
    assert missing if relation == "recorded" else any("pg_amcheck" in line for line in complaints)


@pytest.mark.disaster
def test_postgres_reader_sees_a_torn_page(open_folder: Path, base_seed: int) -> None:
    victim, directory, _history = _killed_under_load("postgres", open_folder, base_seed)
    pages = _pages_of("recorded", victim, directory)
    with pages.path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))
    with plain.running(victim, directory), pytest.raises(victims.RejectedError, match="invalid page"):
        victim.found()


@dataclass(frozen=True)
class Pages:
    path: Path
    content: bytes


def _pages_of(relation: str, victim: victims.Victim, directory: Path) -> Pages:
    """The file of a table or index after a checkpoint, the server killed: no WAL repairs it later."""
    with plain.running(victim, directory) as server:
        client = postgres_victim.PostgresClient(victim.port)
        with contextlib.closing(client):
            client.query("CHECKPOINT")
            ((path,),) = client.query(f"SELECT pg_relation_filepath('{relation}')")
        assert path is not None
        plain.kill(server, directory)
    return Pages(directory / path, (directory / path).read_bytes())


def _needed(name: str) -> victims.Victim:
    victim = MAKERS[name]()
    victims.needs(victim)
    return victim


def _killed_under_load(name: str, folder: Path, seed: int) -> tuple[victims.Victim, Path, operations.History]:
    """The victim after a kill -9 at a random moment of its load."""
    print(f"{name}: seed {seed}")
    victim = _needed(name)
    directory = folder / "state"
    directory.mkdir()
    victim.prepare(directory)
    history = operations.History()
    with plain.running(victim, directory) as program:
        with load.Load(victim, history, "r0", seed) as clients, victim.side_load():
            clients.wait_for(acknowledged=50)
            time.sleep(random.Random(seed).random() * 0.5)
            plain.kill(program, directory)
        assert clients.disconnected > 0, "the kill came in the middle of the load"
    with pytest.raises(ConnectionError):
        victim.connect()
    return victim, directory, history
