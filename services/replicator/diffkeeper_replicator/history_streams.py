"""What the history sends: runs of bytes made in a worker's thread, a batch at a time, so that neither memory
nor the event loop feels how large a volume is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from diffkeeper import changes
from diffkeeper.changes import Change
from diffkeeper.domain import clocks, deltas, errors, positions, trees
from diffkeeper_replicator import lazy_content, replays, state_changes
from diffkeeper_replicator.contents import blocks
from diffkeeper_replicator.states import State
from diffkeeper_replicator.volume_history import VolumeHistory

BATCH_BYTES = 512 * 1024
# Told of one frame.
DELTAS_MAX = 10_000


async def send(
    request: web.Request,
    pool: ThreadPoolExecutor,
    parts: Iterator[bytes],
    *,
    content_type: str,
    headers: dict[str, str],
    size: int | None = None,
) -> web.StreamResponse:
    """Stream ``parts``. The first batch is made before the answer begins, so that an early error has its own
    status; a later one breaks the connection off, unless the parts tell it themselves.
    """
    loop = asyncio.get_running_loop()
    batch = await loop.run_in_executor(pool, _batch, parts)
    response = web.StreamResponse(headers={**headers, "Content-Type": content_type})
    response.content_length = size
    await response.prepare(request)
    while batch:
        await response.write(batch)
        batch = await loop.run_in_executor(pool, _batch, parts)
    await response.write_eof()
    return response


def _batch(parts: Iterator[bytes]) -> bytes:
    made = bytearray()
    for part in parts:
        made += part
        if len(made) >= BATCH_BYTES:
            break
    return bytes(made)


def told(head: dict[str, Any], run: Callable[[], Iterable[Change]]) -> Iterator[bytes]:
    """A whole stream of changes. Trouble after its head is told in the stream."""
    yield changes.encode(("head", head))
    count = 0
    try:
        for change in run():
            count += 1
            yield changes.encode(change)
    except errors.DiffKeeperError as error:
        yield changes.encode(("fail", error.to_dict()))
        return
    yield changes.encode(("end", {"changes": count}))


def size_of(state: State, chosen: state_changes.Chosen | None = None) -> dict[str, int]:
    """How much a state holds: what a progress bar needs."""
    names = files = size = 0
    told_ids: set[int] = set()
    for path, file_id in state.tree.paths():
        if chosen is not None and not chosen(path):
            continue
        names += 1
        if state.tree.nodes[file_id].kind is trees.Kind.FILE and file_id not in told_ids:
            told_ids.add(file_id)
            files += 1
            extents = state.files[file_id]
            size += sum(extents.ends) - sum(extents.starts)
    return {"names": names, "files": files, "bytes": size}


def restored(
    history: VolumeHistory, state: State, chosen: state_changes.Chosen | None, skip: int
) -> Iterator[bytes]:
    head = {"volume": history.volume, "position": str(state.position), "at_us": state.at_us}
    head |= size_of(state, chosen)
    return told(head, lambda: state_changes.restore(state, chosen, skip))


def laid_out(history: VolumeHistory, state: State, chosen: state_changes.Chosen | None) -> Iterator[bytes]:
    """As ``restored``, with where each file has content in the place of that."""
    head = {"volume": history.volume, "position": str(state.position), "at_us": state.at_us}
    return told(head | size_of(state, chosen), lambda: lazy_content.layout(state, chosen))


def patched(history: VolumeHistory, old: State, new: State) -> Iterator[bytes]:
    head = {
        "volume": history.volume,
        "from": str(old.position),
        "position": str(new.position),
        "at_us": new.at_us,
    }
    return told(head | size_of(new), lambda: state_changes.patch(old, new))


def replayed(history: VolumeHistory, start: State, upto: State) -> Iterator[bytes]:
    """The state at the start, and then every delta up to the other, each with its time."""
    head = {
        "volume": history.volume,
        "from": str(start.position),
        "position": str(upto.position),
        "from_us": start.at_us,
        "at_us": upto.at_us,
    }

    def run() -> Iterator[Change]:
        state = start.copy()
        yield from state_changes.restore(state)
        yield ("at", str(start.position), start.at_us)
        for step in history.steps(start.position, upto.position):
            yield from replays.changes_of(state, step)

    return told(head, run)


def deltas_at(history: VolumeHistory, position: positions.Position) -> list[dict[str, Any]]:
    """What the frame at a position did, delta by delta, each with the path its file has at that moment."""
    frame = history.frame_at(position)
    state = history.state_at(frame.header.parent).copy()
    first_us, found = clocks.to_micros(frame.header.first), []
    for nth, delta in enumerate(frame.columns(), 1):
        naming = delta.op in deltas.NAMING
        path = state.tree.path(delta.args[0] if naming else delta.file_id)
        if naming and path is not None:
            path = path + b"/" + delta.args[1] if path else delta.args[1]
        one = deltas.Columns()
        one.add(delta)
        state.apply(state.tip, frame.header.last, one)
        found.append(
            {
                "nth": nth,
                "op": delta.op.name.lower(),
                "path": None if path is None else path.decode("utf-8", "replace"),
                "offset": delta.offset,
                "length": delta.length,
                "at_us": first_us + delta.at_us,
            }
        )
        if len(found) >= DELTAS_MAX:
            break
    return found


def content(state: State, path: bytes) -> tuple[int, Iterator[bytes]]:
    """The size and the bytes of one file. Raises NotFound, and Refused for what has no content."""
    file_id = state.tree.walk(path)
    if file_id is None:
        raise errors.NotFound(
            f"there is no {path.decode('utf-8', 'replace')} at {state.position}",
            reason="unknown-path",
            hint="dkctl log with the path shows when it was there",
        )
    node = state.tree.nodes[file_id]
    if node.kind is not trees.Kind.FILE:
        raise errors.Refused(
            f"{path.decode('utf-8', 'replace')} is a {node.kind.name.lower()} at {state.position}",
            reason="not-a-file",
            hint="dkctl restore brings back directories",
        )
    return state.files[file_id].size, _filled(state, file_id)


def _filled(state: State, file_id: int) -> Iterator[bytes]:
    extents, at = state.files[file_id], 0
    zeros = bytes(BATCH_BYTES)
    for offset, data in blocks(state.contents, extents, 0, extents.size):
        while at < offset:
            yield zeros[: offset - at]
            at += min(len(zeros), offset - at)
        yield data
        at += len(data)
    while at < extents.size:
        yield zeros[: extents.size - at]
        at += min(len(zeros), extents.size - at)
