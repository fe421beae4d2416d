"""A directory is there at once and filled while programs use it; its fillers are killed at any moment, and no program
ever reads what was not filled.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support.lazy_rigs import Content, LazyRig, await_that, made_content

from diffkeeper.domain import errors
from diffkeeper.lazy import fillings, going_on, holders, places, sources, trees

pytestmark = [pytest.mark.disaster]

BIG = b"data/big"
SIZES = {BIG: 24 << 20, b"data/odd": 1_234_567, b"data/small": 17, b"empty": 0}
PATIENCE_S = 90


@pytest.fixture
def seed() -> int:
    made = random.SystemRandom().randrange(1 << 32)
    print(f"seed {made}")
    return made


@pytest.fixture
def rig(tmp_path: Path, seed: int) -> Iterator[LazyRig]:
    why_not = trees.why_not_here(tmp_path / "restored")
    if why_not is not None:
        pytest.skip(f"nothing can be filled on demand here: {why_not}")
    made = LazyRig(tmp_path, made_content(seed, SIZES))
    try:
        yield made
    finally:
        made.close()


def whole(rig: LazyRig) -> None:
    await_that(rig.is_settled, PATIENCE_S, "the tree to be whole and in its place")
    for path, data in rig.content.files.items():
        assert (rig.target / os.fsdecode(path)).read_bytes() == data, path


def test_what_is_read_mapped_and_written_is_right_while_the_rest_comes(rig: LazyRig, seed: int) -> None:
    rig.make()
    chance, expected = random.Random(seed), bytearray(rig.content.files[BIG])
    fd = os.open(rig.target / os.fsdecode(BIG), os.O_RDWR)
    try:
        for _ in range(60):
            at = chance.randrange(len(expected) - 200_000)
            length = chance.randrange(1, 200_000)
            assert os.pread(fd, length, at) == expected[at : at + length]
            data = chance.randbytes(chance.randrange(1, 9000))
            at = chance.randrange(len(expected) - len(data))
            os.pwrite(fd, data, at)
            expected[at : at + len(data)] = data
        page = chance.randrange(len(expected) // 4096 - 64) * 4096
        with mmap.mmap(fd, 65536, offset=page) as mapped:
            assert mapped[:] == expected[page : page + 65536]
            mapped[5:9] = expected[page + 5 : page + 9] = b"mmap"
    finally:
        os.close(fd)
    rig.content.files[BIG] = bytes(expected)
    whole(rig)
    assert rig.pids("worker") == rig.pids("keeper") == []


def test_what_a_program_cuts_off_and_writes_anew_is_not_filled_again(rig: LazyRig) -> None:
    rig.content.delay_s = 0.01
    rig.make()
    big, odd = rig.target / os.fsdecode(BIG), rig.target / "data/odd"
    expected = rig.content.files[BIG][:1_000_003] + bytes(2_000_000)
    os.truncate(big, 1_000_003)
    os.truncate(big, 3_000_003)
    odd.write_bytes(b"new")
    with odd.open("r+b") as file:
        file.truncate(500_000)
        file.seek(300_000)
        file.write(b"later")
    os.rename(rig.target / "data/small", rig.target / "moved")
    content = rig.content.files
    small = content.pop(b"data/small")
    content |= {BIG: expected, b"data/odd": b"new".ljust(300_000, b"\0") + b"later".ljust(200_000, b"\0")}
    await_that(rig.is_settled, PATIENCE_S, "the tree to be whole")
    assert big.read_bytes() == expected
    assert odd.read_bytes() == content[b"data/odd"]
    assert (rig.target / "moved").read_bytes() == small


READER = """
import os, random, sys
path, truth, seed, rounds = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3]), int(sys.argv[4])
chance, refused = random.Random(seed), 0
fd = os.open(path, os.O_RDWR)
for _ in range(rounds):
    at = chance.randrange(len(truth))
    length = chance.randrange(1, 70_000)
    try:
        found = os.pread(fd, length, at)
    except OSError:
        refused += 1
        continue
    assert found == truth[at:at + length], ("wrong bytes at", at, length)
print(refused)
"""


def go_slowly(rig: LazyRig) -> None:
    """The background stays busy with one more file, which comes first, until ``content.slow`` is cleared."""
    rig.content.files[b"data/slow"] = random.Random(1).randbytes(60 << 20)
    rig.content.slow[b"data/slow"] = 1.5


def has_another(rig: LazyRig, victim: str, killed: set[int]) -> bool:
    return bool(set(rig.pids(victim)) - killed) or not rig.folder.exists()


@pytest.mark.parametrize("victims", [("worker",), ("keeper",), ("worker", "keeper")])
def test_no_program_reads_what_is_not_filled_whoever_is_killed(
    rig: LazyRig, tmp_path: Path, seed: int, victims: tuple[str, ...]
) -> None:
    """An event that a killed worker had taken in that instant may be refused; nothing is ever wrong."""
    rig.content.delay_s = 0.002
    go_slowly(rig)
    truth = tmp_path / "truth"
    truth.write_bytes(rig.content.files[BIG])
    rig.make()
    chance = random.Random(seed)
    argv = [sys.executable, "-c", READER, str(rig.target / os.fsdecode(BIG)), str(truth)]
    readers = [
        subprocess.Popen([*argv, str(seed + nth), "250"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for nth in range(2)
    ]
    try:
        kills = 0
        ends = time.monotonic() + PATIENCE_S
        while any(reader.poll() is None for reader in readers) and time.monotonic() < ends:
            time.sleep(chance.uniform(0.02, 0.3))
            # One at a time: with both gone at once nobody would hold the events.
            if kills < 4 and not rig.is_settled() and rig.pids("worker") and rig.pids("keeper"):
                victim = victims[kills % len(victims)]
                killed = rig.kill(victim)
                kills += bool(killed)
                await_that(partial(has_another, rig, victim, killed), PATIENCE_S, f"another {victim}")
        for reader in readers:
            out, err = reader.communicate(timeout=PATIENCE_S)
            assert reader.returncode == 0, err.decode()
            print(f"refused {out.decode().strip()} of 250")
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert kills > 0
    rig.content.slow.clear()
    whole(rig)


def test_both_killed_at_once_are_gone_on_with(rig: LazyRig) -> None:
    go_slowly(rig)
    rig.make()
    small = rig.target / "data/small"
    small.write_bytes(b"the program's own")
    rig.content.files[b"data/small"] = b"the program's own"
    rig.end_both()
    where = sources.Address("orders", "1.1", rig.served.address, "")
    rig.content.slow.clear()
    assert going_on.resume(rig.target, where)
    assert not going_on.resume(rig.target, where), "one works already"
    whole(rig)


@pytest.mark.skipif(holders.why_not() is not None, reason=f"nothing can hold here: {holders.why_not()}")
def test_no_program_reads_what_is_not_filled_when_all_are_killed_at_once(
    rig: LazyRig, tmp_path: Path, seed: int
) -> None:
    """Programs wait until the same command is given again; what they had open is right, too."""
    rig.content.delay_s = 0.002
    go_slowly(rig)
    truth = tmp_path / "truth"
    truth.write_bytes(rig.content.files[BIG])
    rig.make()
    chance = random.Random(seed)
    argv = [sys.executable, "-c", READER, str(rig.target / os.fsdecode(BIG)), str(truth)]
    readers = [
        subprocess.Popen([*argv, str(seed + nth), "250"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for nth in range(2)
    ]
    late: list[bytes] = []
    try:
        for _ in range(3):
            time.sleep(chance.uniform(0.02, 0.3))
            rig.end_all()
            assert [one for one in holders.of(rig.folder) if not holders.is_well(one)], (
                "it was killed, and holds"
            )
            opener = threading.Thread(target=lambda: late.append((rig.target / "data/odd").read_bytes()))
            opener.start()
            time.sleep(chance.uniform(0.05, 0.2))
            assert going_on.resume(rig.target)
            opener.join(PATIENCE_S)
            await_that(lambda: all(map(holders.is_well, holders.of(rig.folder))), PATIENCE_S, "a new holder")
        for reader in readers:
            out, err = reader.communicate(timeout=PATIENCE_S)
            assert reader.returncode == 0, err.decode()
            print(f"refused {out.decode().strip()} of 250")
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert late == [rig.content.files[b"data/odd"]] * 3
    rig.content.slow.clear()
    whole(rig)
    assert rig.pids("holder") == []


def test_where_nothing_can_hold_a_tree_that_was_left_open_is_not_gone_on_with(rig: LazyRig) -> None:
    go_slowly(rig)
    rig.make()
    (rig.target / "mine").write_bytes(b"made meanwhile")
    rig.end_both()
    holders.release_all(rig.folder)  # as if there had been none
    with pytest.raises(errors.Refused, match="may have read zeros"):
        going_on.resume(rig.target)
    aside = rig.target.with_name("aside")
    with (rig.target / "mine").open(), pytest.raises(errors.Refused, match="may have read zeros"):
        going_on.give_up(rig.target, aside)
    assert going_on.give_up(rig.target, aside)
    assert (aside / "mine").read_bytes() == b"made meanwhile"
    rig.content.slow.clear()
    rig.make()
    whole(rig)


def test_a_filling_is_stopped_when_nothing_uses_it_and_goes_on_when_asked_for(rig: LazyRig) -> None:
    go_slowly(rig)
    rig.make()
    deployment = rig.target.parent
    assert [one for one in fillings.shown() if fillings.is_of(one, deployment)] == [rig.target]
    with (rig.target / "data/odd").open("rb") as file:
        assert not fillings.stop(rig.target)
        assert file.read() == rig.content.files[b"data/odd"], "whoever uses it is served as before"
    assert fillings.stop(rig.target)
    assert list(rig.target.iterdir()) == []
    await_that(lambda: not any(map(rig.pids, ("worker", "keeper", "holder"))), PATIENCE_S, "the last process")
    assert rig.target not in fillings.shown()
    rig.content.slow.clear()
    assert going_on.resume(rig.target)
    whole(rig)


def test_a_filling_whose_workers_were_killed_is_stopped_too(rig: LazyRig) -> None:
    go_slowly(rig)
    rig.make()
    rig.end_all()
    assert fillings.stop(rig.target)
    await_that(lambda: not any(map(rig.pids, ("worker", "keeper", "holder"))), PATIENCE_S, "the last process")
    rig.content.slow.clear()
    assert going_on.resume(rig.target)
    whole(rig)


def test_damaged_content_is_named_and_refused_and_the_rest_comes(rig: LazyRig) -> None:
    rig.content.damaged.add(list(rig.content.files).index(b"data/odd"))
    rig.make()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (rig.target / "data/odd").read_bytes()
    assert (rig.target / os.fsdecode(BIG)).read_bytes() == rig.content.files[BIG]

    def told() -> bool:
        status = trees.status(rig.target) or {}
        return list(status.get("damaged", {})) == ["data/odd"]

    await_that(told, PATIENCE_S, "the damage to be told")
    assert not rig.is_settled()


def test_a_source_that_is_away_stops_programs_until_it_is_back(rig: LazyRig) -> None:
    rig.make(background=False)
    address = rig.served
    rig.served.close()
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((rig.target / "data/small").read_bytes()))
    reader.start()
    reader.join(1.0)
    assert not found, "nothing was there to read"
    from tests.support.lazy_rigs import Served

    rig.served = Served(rig.content)
    assert rig.served is not address
    sources.write(rig.folder, sources.Address("orders", "1.1", rig.served.address, ""))
    reader.join(PATIENCE_S)
    assert found == [rig.content.files[b"data/small"]]


def test_a_read_only_mount_shows_everything_and_leaves_nothing(rig: LazyRig) -> None:
    rig.make(background=False, read_only=True, temporary=True)
    for path, data in rig.content.files.items():
        assert (rig.target / os.fsdecode(path)).read_bytes() == data
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (rig.target / "new").touch()
    # The worker may still have a file open that it filled.
    await_that(lambda: places.hide(rig.target), PATIENCE_S, "nobody to use it")
    await_that(lambda: not rig.folder.exists() and not rig.target.exists(), PATIENCE_S, "the end of it")


def test_the_target_is_closed_when_the_mount_is_gone(rig: LazyRig) -> None:
    """As after a power cut: what is not filled is not to be had by its name."""
    go_slowly(rig)
    rig.make()
    rig.end_both()
    assert places.hide(rig.target)
    assert list(rig.target.iterdir()) == []
    with contextlib.suppress(PermissionError):
        (rig.target / "initialised").touch()
        pytest.skip("this file system cannot close a directory for root")
    rig.content.slow.clear()
    assert going_on.resume(rig.target)
    whole(rig)


def test_a_database_is_used_at_once(tmp_path: Path) -> None:
    why_not = trees.why_not_here(tmp_path / "restored")
    if why_not is not None:
        pytest.skip(f"nothing can be filled on demand here: {why_not}")
    made = tmp_path / "made.db"
    with contextlib.closing(sqlite3.connect(made)) as base, base:
        base.execute("create table t (a integer primary key, b blob)")
        base.executemany("insert into t values (?, randomblob(900))", ((n,) for n in range(20_000)))
    content = Content()
    content.files[b"base.db"] = made.read_bytes()
    rig = LazyRig(tmp_path, content)
    try:
        rig.make()
        with contextlib.closing(sqlite3.connect(rig.target / "base.db")) as base:
            with base:
                base.execute("insert into t values (-1, 'new')")
                base.execute("delete from t where a % 100 = 7")
            rig.kill("worker")
            assert base.execute("select count(*) from t").fetchone() == (19_801,)
            assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        await_that(rig.is_settled, PATIENCE_S, "the database to be whole")
        with contextlib.closing(sqlite3.connect(rig.target / "base.db")) as base:
            assert base.execute("pragma integrity_check").fetchone() == ("ok",)
            assert base.execute("select count(*) from t").fetchone() == (19_801,)
    finally:
        rig.close()
