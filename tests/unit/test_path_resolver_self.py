"""Paths through /proc/self and /dev/fd mean the caller's process, never the agent's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture import path_resolver
from diffkeeper_capture.path_resolver import OUTSIDE, Base, PathResolver, Place
from diffkeeper_capture.shadow import Shadow


class NoSink:
    """Resolving writes nothing."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"a resolver must not write: {name}")


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def resolver(tmp_path: Path) -> PathResolver:
    shadow = Shadow(NoSink())  # type: ignore[arg-type]
    status = tmp_path.stat()
    shadow.bind(ROOT_ID, status.st_ino)
    return PathResolver(shadow, tmp_path, status)


def base(tgid: int) -> Base:
    """As a record of an absolute path by a process in our own namespace and root says it."""
    root = os.stat("/")
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    return Base(root.st_ino, path_resolver.kernel_device(root.st_dev), tgid, namespace, 1)


FORMS = ["/proc/self/fd/{}", "/proc/thread-self/fd/{}", "/dev/fd/{}", "//proc//self//fd/{}"]


@pytest.mark.parametrize("form", FORMS)
def test_a_descriptor_of_another_process_is_not_ours_of_the_same_number(
    resolver: PathResolver, root_fd: int, form: str
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert resolver.target(base(stranger.pid), form.format(root_fd).encode()) is OUTSIDE
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("form", FORMS)
def test_a_descriptor_of_the_caller_leads_into_the_volume(
    resolver: PathResolver, root_fd: int, form: str
) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(root_fd,), cwd="/"
    )
    try:
        found = resolver.target(base(caller.pid), form.format(root_fd).encode())
        assert found == Place(0, b"", ROOT_ID)
        below = resolver.entry(base(caller.pid), f"{form.format(root_fd)}/name".encode())
        assert below == Place(ROOT_ID, b"name", None)
    finally:
        caller.communicate(b"\n")


def test_what_a_descriptor_stands_for_is_looked_up_each_time(
    resolver: PathResolver, root_fd: int, tmp_path: Path
) -> None:
    path = f"/proc/self/fd/{root_fd}".encode()
    assert resolver.target(base(os.getpid()), path) == Place(0, b"", ROOT_ID)
    elsewhere = os.open("/", os.O_RDONLY)
    kept = os.dup(root_fd)
    os.dup2(elsewhere, root_fd)
    try:
        assert resolver.target(base(os.getpid()), path) is OUTSIDE
    finally:
        os.dup2(kept, root_fd)
        os.close(kept)
        os.close(elsewhere)


def test_a_link_into_proc_is_not_followed_as_if_it_were_ours(
    resolver: PathResolver, root_fd: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "descriptors"
    link.symlink_to("/proc/self/fd")
    assert resolver.target(base(os.getppid()), f"{link}/{root_fd}".encode()) is OUTSIDE
