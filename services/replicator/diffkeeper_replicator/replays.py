"""The deltas between two moments as changes by path: what a program did, step by step, for a debugger's eyes."""

from __future__ import annotations

from collections.abc import Iterator

from diffkeeper.changes import Change
from diffkeeper.domain import clocks, deltas
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_replicator.archives import Step
from diffkeeper_replicator.states import State


def changes_of(state: State, step: Step) -> Iterator[Change]:
    """The changes of one step, and ``state`` brought past it. Content of files without a name is left out:
    nobody can see it.
    """
    first_us, last_us = clocks.to_micros(step.first), -1
    for columns in step.bodies:
        for delta in columns:
            if delta.at_us != last_us:
                last_us = delta.at_us
                yield ("at", str(step.tip.position), first_us + delta.at_us)
            yield from _change(state, delta)
            one = deltas.Columns()
            one.add(delta)
            state.apply(state.tip, step.last, one)
    state.tip, state.stamp = step.tip, step.last


def _change(state: State, delta: Delta) -> Iterator[Change]:
    tree, args = state.tree, delta.args
    if delta.op in deltas.NAMING:
        yield from _naming(state, delta)
        return
    path = tree.path(delta.file_id)
    if path is None:
        return
    match delta.op:
        case Op.WRITE:
            yield ("write", path, delta.offset, delta.data)
        case Op.TRUNCATE:
            yield ("truncate", path, delta.offset)
        case Op.PUNCH:
            yield ("punch", path, delta.offset, delta.length)
        case Op.ATTR:
            node = tree.nodes[delta.file_id]
            attrs = {"mode": node.mode, "uid": node.uid, "gid": node.gid} | args[0]
            if args[0].keys() & {"mode", "uid", "gid"}:
                yield ("owner", path, attrs["mode"], attrs["uid"], attrs["gid"])
            if args[0].keys() & {"atime_ns", "mtime_ns"}:
                yield ("times", path, attrs.get("atime_ns"), attrs.get("mtime_ns"))
        case Op.XATTR:
            yield ("xattr", path, args[0], args[1])
        case _:
            pass


def _naming(state: State, delta: Delta) -> Iterator[Change]:
    tree, args = state.tree, delta.args
    above = tree.path(args[0]) or b""
    path = above + b"/" + args[1] if above else args[1]
    match delta.op:
        case Op.CREATE | Op.MKDIR | Op.MKFIFO:
            yield ({Op.CREATE: "create", Op.MKDIR: "mkdir", Op.MKFIFO: "fifo"}[delta.op], path)
            yield ("owner", path, *args[2:])
        case Op.SYMLINK:
            yield ("symlink", path, args[2])
            yield ("owner", path, 0o777, *args[3:])
        case Op.LINK:
            source = tree.path(delta.file_id)
            if source is not None:
                yield ("link", source, path)
        case Op.UNLINK | Op.RMDIR:
            yield ("unlink" if delta.op is Op.UNLINK else "rmdir", path)
        case _:
            into = tree.path(args[2]) or b""
            yield ("rename", path, into + b"/" + args[3] if into else args[3], args[4])
