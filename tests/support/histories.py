"""States of the history seen as the obvious twin sees them, and logs to make them from."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.made_logs import FrameChain, MadeLog
from tests.support.replays import Replay, Snapshot

from diffkeeper.domain import deltas, frames, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper_replicator.contents import blocks
from diffkeeper_replicator.states import State


def content(state: State, file_id: int) -> bytes:
    extents = state.files[file_id]
    found = bytearray(extents.size)
    for offset, data in blocks(state.contents, extents, 0, extents.size):
        found[offset : offset + len(data)] = data
    return bytes(found)


def snapshot(state: State) -> Snapshot:
    """As ``Replay.snapshot`` with extended attributes."""
    found: Snapshot = {b"": _describe(state, ROOT_ID)}
    for path, file_id in state.tree.paths():
        found[path] = _describe(state, file_id)
    return found


def _describe(state: State, file_id: int) -> tuple[Any, ...]:
    node = state.tree.nodes[file_id]
    what: Any = None
    if node.kind is trees.Kind.FILE:
        what = content(state, file_id)
    elif node.kind is trees.Kind.SYMLINK:
        what = node.target
    mode = 0o777 if node.kind is trees.Kind.SYMLINK else node.mode
    return (node.kind.name, mode, node.uid, node.gid, what, state.xattrs.get(file_id, {}))


def live(run: Sequence[Delta]) -> list[Delta]:
    """Without what the twin does not take: changes to files that have lost their last name, and writes of
    nothing, which make no file longer.
    """
    tree, kept = trees.Tree(), []
    for delta in run:
        if delta.op is Op.WRITE and not delta.data:
            continue
        if delta.op in deltas.NAMING or delta.file_id in tree.nodes:
            tree.apply(delta)
            kept.append(delta)
    return kept


def made_frames(seed: int, count: int, per_frame: int = 7) -> list[frames.Frame]:
    """Frames of a made-up log: names, links, sparse files, unlinked files that are written to."""
    rng = random.Random(seed)
    run = list(MadeLog(rng.randrange(1 << 20) for _ in range(6 * count)).deltas())[:count]
    chain, at, made = FrameChain(), 0, []
    while at < len(run):
        size = rng.randrange(1, 2 * per_frame)
        flags = frames.Flag.BARRIER if rng.randrange(2) else frames.NO_FLAGS
        made.append(chain.frame(run[at : at + size], flags))
        at += size
    return made


def replayed(log: Sequence[frames.Frame], count: int | None = None) -> Snapshot:
    """The slow twin: every delta from the first frame on."""
    run = [delta for frame in log[:count] for delta in frames.open_frame(frame.wire).columns()]
    return Replay().apply_all(live(run)).snapshot(with_xattrs=True)


def replays_at(log: Sequence[frames.Frame], counts: Collection[int]) -> Iterator[tuple[int, Snapshot]]:
    """The slow twin after each of ``counts`` frames, in one go."""
    twin, tree = Replay(), trees.Tree()
    for count, frame in enumerate(log, 1):
        for delta in frames.open_frame(frame.wire).columns():
            if delta.op is Op.WRITE and not delta.data:
                continue
            if delta.op in deltas.NAMING or delta.file_id in tree.nodes:
                tree.apply(delta)
                twin.apply(delta)
        if count in counts:
            yield count, twin.snapshot(with_xattrs=True)


def state_of(log: Sequence[frames.Frame], folder: Path) -> State:
    state = State.empty(folder)
    for frame in log:
        step(state, frame)
    return state


def step(state: State, frame: frames.Frame) -> None:
    state.apply(frames.Tip(frame.position, frame.hash), frame.header.last, frame.columns())


def tip(frame: frames.Frame) -> frames.Tip:
    return frames.Tip(frame.position, frame.hash)
