"""Paths of other processes: what they name in the volume, whatever their root, directory and mounts are."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.sinks import ListSink

from diffkeeper.domain import trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture.path_resolver import OUTSIDE, UNSURE, Base, Lost, PathResolver, Place, kernel_device
from diffkeeper_capture.shadow import Shadow


class Bench:
    """A volume whose shadow has ``d/f``, a link ``s`` to ``d``, and links that lead out and round in a circle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shadow = Shadow(ListSink())
        status = os.stat(root)
        self.shadow.bind(ROOT_ID, status.st_ino)
        self.directory = self._make(trees.Kind.DIR, ROOT_ID, b"d")
        self.file = self._make(trees.Kind.FILE, self.directory, b"f")
        self.link = self._make(trees.Kind.SYMLINK, ROOT_ID, b"s", b"d/.//")
        self._make(trees.Kind.SYMLINK, ROOT_ID, b"out", b"/etc")
        self._make(trees.Kind.SYMLINK, ROOT_ID, b"round", b"round")
        self.resolver = PathResolver(self.shadow, root, status)

    def _make(self, kind: trees.Kind, parent: int, name: bytes, target: bytes = b"") -> int:
        return self.shadow.make(kind, parent, name, 0o755, 0, 0, 1, target)

    def base(self, directory: str | Path = "/", tgid: int | None = None) -> Base:
        status = os.stat(directory)
        tgid = os.getpid() if tgid is None else tgid
        namespace = os.stat(f"/proc/{tgid}/ns/mnt").st_ino
        return Base(status.st_ino, kernel_device(status.st_dev), tgid, namespace, time.monotonic_ns())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    root = tmp_path / "volume"
    root.mkdir()
    return Bench(root)


@pytest.mark.parametrize("path", [b"d/f", b"./d//f", b"d/../d/f", b"s/f", b"s/../d/f", b"d/f/"])
def test_relative_paths_are_walked_in_the_shadow(bench: Bench, path: bytes) -> None:
    found = bench.resolver.entry(bench.base(bench.root), path)
    assert found == Place(bench.directory, b"f", bench.file)


def test_the_last_link_is_followed_only_when_asked(bench: Bench) -> None:
    base = bench.base(bench.root)
    assert bench.resolver.entry(base, b"s") == Place(ROOT_ID, b"s", bench.link)
    assert bench.resolver.target(base, b"s") == Place(ROOT_ID, b"d", bench.directory)


def test_a_name_that_is_not_there_yet_has_a_place(bench: Bench) -> None:
    assert bench.resolver.entry(bench.base(bench.root), b"s/new") == Place(bench.directory, b"new", None)


def test_a_path_through_the_unknown_is_lost_and_not_outside(bench: Bench) -> None:
    assert bench.resolver.entry(bench.base(bench.root), b"d/what/f") == Lost(bench.directory, b"what")


@pytest.mark.parametrize("path", [b"out/passwd", b"round/f", b"../elsewhere", b"/etc/passwd", b"/"])
def test_what_leads_out_is_outside(bench: Bench, path: bytes) -> None:
    base = bench.base() if path.startswith(b"/") else bench.base(bench.root)
    assert bench.resolver.entry(base, path) is OUTSIDE


def test_an_absolute_path_of_a_root_in_the_volume_is_inside(bench: Bench) -> None:
    """As a program sees it that was confined to the volume by chroot, even when it is gone by now."""
    nobody = replace(bench.base(bench.root), tgid=0, mount_ns=1)
    assert bench.resolver.entry(nobody, b"/d/f") == Place(bench.directory, b"f", bench.file)


def test_a_path_of_a_world_that_is_gone_is_not_called_outside(bench: Bench) -> None:
    gone = replace(bench.base(), tgid=0, mount_ns=1)
    assert bench.resolver.entry(gone, b"/data/elsewhere") is UNSURE


def test_a_path_may_leave_and_come_back(bench: Bench) -> None:
    found = bench.resolver.entry(bench.base(bench.root), b"../volume/d/f")
    assert found == Place(bench.directory, b"f", bench.file)


def test_a_path_from_above_comes_in(bench: Bench) -> None:
    found = bench.resolver.entry(bench.base(bench.root.parent), b"volume/d/f")
    assert found == Place(bench.directory, b"f", bench.file)


def test_an_empty_path_is_the_base_itself(bench: Bench) -> None:
    bench.shadow.bind(bench.file, 4711)
    base = Base(4711, bench.resolver.device, os.getpid(), 0, 1)
    assert bench.resolver.target(base, b"") == Place(bench.directory, b"f", bench.file)


def test_an_inode_number_of_another_file_system_is_not_ours(bench: Bench) -> None:
    ours = bench.base(bench.root)
    stranger = Base(ours.inode, ours.device + 1, ours.tgid, ours.mount_ns, ours.now_ns)
    assert bench.resolver.entry(stranger, b"f") is OUTSIDE


@pytest.fixture
def elsewhere(bench: Bench, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sees the volume at another path, by a bind mount in a namespace of its own."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1) to make a mount namespace")
    (tmp_path / "seen").mkdir()
    script = 'mount --bind "$0" "$1" && echo ready && exec cat'
    command = ["unshare", "--mount", "sh", "-c", script, str(bench.root), str(tmp_path / "seen")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()
        process.wait(10)


def test_a_bind_mount_of_another_namespace_is_seen_through(
    bench: Bench, tmp_path: Path, elsewhere: subprocess.Popen[bytes]
) -> None:
    path = os.fsencode(tmp_path / "seen" / "d" / "f")
    base = bench.base("/", elsewhere.pid)
    assert bench.resolver.entry(base, path) == Place(bench.directory, b"f", bench.file)
    assert bench.resolver.entry(bench.base(), path) is OUTSIDE, (
        "in our own namespace nothing is mounted there"
    )


def test_the_namespace_of_a_caller_that_has_ended_is_remembered_by_another(
    bench: Bench, tmp_path: Path, elsewhere: subprocess.Popen[bytes]
) -> None:
    living = bench.base("/", elsewhere.pid)
    bench.resolver.entry(living, os.fsencode(tmp_path / "seen" / "d" / "f"))
    ended = Base(living.inode, living.device, (1 << 22) - 1, living.mount_ns, living.now_ns)
    found = bench.resolver.entry(ended, os.fsencode(tmp_path / "seen" / "d" / ".." / "d" / "f"))
    assert found == Place(bench.directory, b"f", bench.file)
