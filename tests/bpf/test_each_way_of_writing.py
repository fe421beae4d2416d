"""Each call that changes a volume, and the exact records it makes."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from tests.bpf.recording import Watched

from diffkeeper_capture.bpf_probe import Follows

pytestmark = pytest.mark.bpf

OWNER = f"{os.getuid()}:{os.getgid()}"
CONTENT = {
    "plain_writes": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @0 b'hello' size=5",
        "write a @100 b'far' size=103",
        "write a @5 b' world' size=103",
        "write a @11 b'onetwo' size=103",
        "write a @50 b'xyz' size=103",
        "write a @200 b'durable' size=207 SYNCHRONOUS",
        "write a @17 b'here' size=207",
        "write a @21 b'!' size=207",
    ],
    "failed_writes": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @0 b'yes' size=3",
    ],
    "appends": [
        f"open ./log 644 {OWNER} CREATED",
        "write log @0 b'first ' size=6 APPEND",
        "write log @6 b'second ' size=13 APPEND",
        "write log @13 b'third ' size=19 APPEND",
        "write log @19 b'fourth' size=25 APPEND",
    ],
    "synchronous": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @0 b'1' size=1 SYNCHRONOUS",
        "write a @0 b'2' size=1 SYNCHRONOUS",
        "write a @0 b'3' size=1",
        "sync a",
        "sync a",
        "sync a",
        "sync .",
    ],
    "pages": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @8192 b'p'*4096 size=12288",
        "write a @0 b'q'*8192 size=12288",
        "write a @0 b'r'*4097 size=12288",
    ],
    "opens": [
        f"open ./a 640 {OWNER} CREATED",
        f"open ./a 640 {OWNER} TRUNCATED",
        "mkdir $/d 40755 FOUND",
        f"open d/b\\xff 600 {OWNER} CREATED",
        f"open d/c 600 {OWNER} CREATED",
    ],
    "resizing": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @0 b'0123456789' size=10",
        "size a 4",
        "truncate $/a 2",
        "size a 8",
        "allocated a 0+20 mode=0 size=20",
        "allocated a 0+4096 mode=3 size=20",
    ],
    "copies": [
        f"open ./source 644 {OWNER} CREATED",
        "write source @0 b'abcdefghij' size=10",
        f"open ./target 644 {OWNER} CREATED",
        "reread target 100+4 size=104",
        "reread target 0+3 size=104",
        "reread target 3+5 size=104",
        "reread target 50+5 size=104",
        "reread target 8+5 size=104",
    ],
    "maps": [
        f"open ./a 644 {OWNER} CREATED",
        "size a 8192",
        "mapped a 4096+4096 1",
        "dirtied a 1+1",
    ],
    "unlinked": [
        f"open ./a 644 {OWNER} CREATED",
        "write a @0 b'named' size=5",
        "unlink $/a",
        "write a @5 b'nameless' size=13 UNLINKED",
        "write ? @0 b'never named' size=11 UNLINKED",
    ],
    "names": [
        "mkdir $/d 40750 FOUND",
        "mkdir $/e 40755 FOUND",
        f"open d/f 644 {OWNER} CREATED",
        "rename $/d/f $/e/g",
        "link $/e/g $/e/h",
        "symlink ../e/g $/d/s FOUND",
        "rename $/e/g $/e/h extra=0x2",
        "mknod $/pipe 10600 FOUND",
        "unlink $/e/g",
        "unlink $/d/s",
        "rmdir $/d",
    ],
    "relative_names": [
        "mkdir .:d 40755 FOUND",
        "mkdir .:./d/sub 40755 FOUND",
        "mkdir d:x 40755 FOUND",
        "rename d:x .:y",
        "rmdir .:y",
        "rmdir d:../d/sub",
    ],
    "attributes": [
        f"open ./a 600 {OWNER} CREATED",
        f"attr a 100640 {OWNER}",
        "attr a 100640 12:34",
        "attr a 100640 12:34",
        "chmod $/a 644",
        "chown $/a 56:-1",
        "chown $/a -1:78 extra=0x100",
        "utimes $/a 3 4",
        "attr a 100644 9:9",
        "attr a 100755 9:9",
        "chmod $/a 700",
        f"attr . 40711 {OWNER}",
    ],
    "extended": [
        f"open ./a 644 {OWNER} CREATED",
        "xattr a user.one",
        "setxattr $/a user.two",
        "setxattr $/a user.three extra=0x1",
        "xattr a user.one",
        "removexattr $/a user.two",
    ],
    "linked_inside": [
        f"open ./a 644 {OWNER} CREATED",
        "link $/a $/b",
        "write a @0 b'by b' size=4",
    ],
}


@pytest.mark.parametrize("act", CONTENT)
def test_the_records_of(act: str, volume: Watched) -> None:
    assert without_chance(volume.lines(volume.run(act))) == CONTENT[act]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these calls exist on x86-64 only")
def test_the_records_of_old_calls(volume: Watched) -> None:
    assert without_chance(volume.lines(volume.run("old_calls"))) == [
        f"open ./a 600 {OWNER} CREATED",
        "write a @0 b'a' size=1",
        f"open ./b 600 {OWNER} CREATED",
        "link $/a $/c",
        "rename $/c $/d",
        "unlink $/d",
        "mkdir $/e 40700 FOUND",
        "rmdir $/e",
        "symlink a $/s FOUND",
        "mknod $/p 10600 FOUND",
        "chmod $/a 640",
        "chown $/a 1:2",
        "chown $/s 3:4 extra=0x100",
        "utimes $/a now now",
        "utimes $/a now now",
        "attr a 100640 1:2",
    ]


def test_direct_writes_say_so(volume: Watched) -> None:
    lines = volume.lines(volume.run("direct"))
    assert lines[1:] == ["write a @4096 b'd'*4096 size=8192 DIRECT"]


def test_ways_that_are_followed_elsewhere_are_no_news(volume: Watched) -> None:
    assert volume.probe.follows == Follows.PAGES | Follows.URING | Follows.DIRECT
    assert volume.lines(volume.run("unseen")) == []


def test_records_know_who_when_and_which_file(volume: Watched) -> None:
    seen = volume.run("plain_writes")
    file = (volume.root / "a").stat()
    for record, _ in seen:
        assert record.inode == file.st_ino
        assert record.device == os.major(file.st_dev) << 20 | os.minor(file.st_dev)
        assert record.volume == volume.slot
        assert record.tid == record.tgid
        assert 0 < record.start_ns < record.end_ns
    ends = [record.end_ns for record, _ in seen]
    assert ends == sorted(ends)
    assert len({record.generation for record, _ in seen}) == 1
    assert seen[0][0].inode2 == volume.root.stat().st_ino


def test_a_path_record_knows_the_caller(volume: Watched) -> None:
    made = volume.run("names")[0][0]
    assert made.mount_ns == Path("/proc/self/ns/mnt").stat().st_ino
    assert (made.uid, made.gid) == (os.geteuid(), os.getegid())
    root = os.stat("/")
    assert made.inode == root.st_ino, "an absolute path is relative to the root of its caller"


def without_chance(lines: list[str]) -> list[str]:
    """Other processes of the machine name files too, and may do so at the same instant."""
    return [line.replace(" OVERLAPPED_NAMES", "") for line in lines]
