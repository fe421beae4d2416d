"""Changes by path: a restored directory, and one brought from any moment to any other, equal the replay of
the log; and nothing of a stream is done outside of the directory.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import histories, replays
from tests.support.made_logs import FrameChain

from diffkeeper import changes
from diffkeeper.changes import Change
from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import state_changes
from diffkeeper_replicator.states import State


def carried_out(run: Iterable[Change], root: Path) -> replays.Snapshot:
    stream = b"".join(map(changes.encode, [*run, ("end", {})]))
    with DirectoryWriter(root) as writer:
        for change in changes.read(io.BytesIO(stream)):
            writer.do(change)
    return replays.snapshot(root, with_xattrs=True)


def without_setid(found: replays.Snapshot) -> replays.Snapshot:
    """As a directory can show it: no set-id bits, and only files and directories have extended attributes."""
    shown: replays.Snapshot = {}
    for path, (kind, mode, uid, gid, what, xattrs) in found.items():
        plain = kind in ("FILE", "DIR")
        shown[path] = (
            kind,
            mode & ~0o6000 if kind != "SYMLINK" else mode,
            uid,
            gid,
            what,
            xattrs if plain else {},
        )
    return shown


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_restored_directory_is_the_replay_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("r")
    log = histories.made_frames(seed, 60)
    (folder / "to").mkdir()
    found = carried_out(state_changes.restore(histories.state_of(log, folder)), folder / "to")
    assert found == without_setid(histories.replayed(log))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_a_directory_is_brought_from_any_moment_to_any_other_and_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shared: bool
) -> None:
    folder = tmp_path_factory.mktemp("p")
    log = histories.made_frames(seed, 70)
    one = random.Random(seed).randrange(1, len(log) + 1)
    if shared:
        early = histories.state_of(log[:one], folder)
        late = early.copy()
        for frame in log[one:]:
            histories.step(late, frame)
    else:
        early, late = histories.state_of(log[:one], folder), histories.state_of(log, folder)
    root = folder / "to"
    root.mkdir()
    carried_out(state_changes.restore(late), root)
    back = carried_out(state_changes.patch(late, early), root)
    assert back == without_setid(histories.replayed(log, one))
    assert carried_out(state_changes.patch(early, late), root) == without_setid(histories.replayed(log))


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    chain, state = FrameChain(), State.empty(tmp_path)
    histories.step(state, chain.frame([Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0))]))
    histories.step(state, chain.frame([write(2, 0, bytes(range(256)) * 4000)]))
    later = state.copy()
    histories.step(later, chain.frame([write(2, 500_000, b"new")]))
    run = list(state_changes.patch(later, state))
    assert [change[:3] for change in run if change[0] == "write"] == [("write", b"f", 500_000)]
    assert sum(len(change[3]) for change in run if change[0] == "write") == 3


def test_chosen_paths_come_with_the_directories_above_them(tmp_path: Path) -> None:
    chain, state = FrameChain(), State.empty(tmp_path)
    run = [
        Delta(Op.MKDIR, 2, args=(ROOT_ID, b"a", 0o755, 0, 0)),
        Delta(Op.MKDIR, 3, args=(2, b"b", 0o750, 0, 0)),
        Delta(Op.CREATE, 4, args=(3, b"f", 0o644, 0, 0)),
        Delta(Op.CREATE, 5, args=(2, b"g", 0o644, 0, 0)),
        write(4, 0, b"content"),
    ]
    histories.step(state, chain.frame(run))
    root = tmp_path / "to"
    root.mkdir()
    found = carried_out(state_changes.restore(state, lambda path: path.startswith(b"a/b")), root)
    assert sorted(found) == [b"", b"a", b"a/b", b"a/b/f"]
    assert found[b"a/b/f"][4] == b"content"


@pytest.mark.parametrize(
    "record",
    [
        ("create", b"../x"),
        ("create", b"/x"),
        ("create", b"a//b"),
        ("create", b"a/./b"),
        ("create", b""),
        ("create", "text"),
        ("create", b"x" * 256),
        ("create", b"a\0b"),
        ("link", b"a", b"../b"),
        ("rename", b"a", b"b"),
        ("write", b"f", -1, b""),
        ("write", b"f", 1 << 63, b""),
        ("write", b"f", 0, "text"),
        ("owner", b"f", True, 0, 0),
        ("format-disk", b"f"),
        [],
        5,
    ],
)
def test_a_record_that_is_not_well_formed_is_refused(record: Any) -> None:
    stream = io.BytesIO(changes.encode(record))
    with pytest.raises(errors.Corrupt):
        list(changes.read(stream))


def test_a_stream_that_breaks_off_is_not_taken_for_whole() -> None:
    stream = changes.encode(("create", b"f")) + changes.encode(("end", {}))
    for cut in range(1, len(stream)):
        with pytest.raises(errors.Transient):
            list(changes.read(io.BytesIO(stream[:-cut])))


def test_a_stream_can_say_why_it_ends() -> None:
    failure = errors.Corrupt("chunk x is good nowhere", reason="chunk-damaged")
    with pytest.raises(errors.Corrupt, match="good nowhere"):
        list(changes.read(io.BytesIO(changes.encode(("fail", failure.to_dict())))))


@pytest.mark.parametrize(
    "run",
    [
        ("write", b"out/victim", 0, b"overwritten"),
        ("create", b"out/new"),
        ("unlink", b"out/victim"),
        ("write", b"file", 0, b"overwritten"),
        ("truncate", b"file", 0),
    ],
)
def test_nothing_is_done_through_a_link_to_elsewhere(tmp_path: Path, run: Change) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "victim").write_text("as it was")
    os.symlink(outside, root / "out")
    os.symlink(outside / "victim", root / "file")
    with DirectoryWriter(root) as writer, pytest.raises(errors.Refused):
        writer.do(run)
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_text() == "as it was"


def test_a_digest_that_does_not_hold_is_told(tmp_path: Path) -> None:
    with DirectoryWriter(tmp_path) as writer:
        writer.do(("create", b"f"))
        writer.do(("write", b"f", 0, b"content"))
        with pytest.raises(errors.Corrupt):
            writer.do(("digest", b"f", bytes(32)))
