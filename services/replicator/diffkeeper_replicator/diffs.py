"""What is different between two moments, told for people: text line by line, SQLite databases by table and
row, other files by ranges.

Only files in which an address differs are looked at. What is told has bounds: a change too large to show is
counted instead.
"""

from __future__ import annotations

import base64
import difflib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from diffkeeper.domain import trees
from diffkeeper_replicator import extents, sqlite_diffs, state_changes
from diffkeeper_replicator.contents import blocks
from diffkeeper_replicator.states import State

TEXT_MAX_BYTES = 2 * 1024 * 1024
LINES_MAX = 2000
RANGES_MAX = 200
# Shown of each range, before and after.
SHOWN_BYTES = 64
DATABASE_MAX_BYTES = 4 * 1024 * 1024 * 1024
_MOST_PATHS = 10_000


class _Place(NamedTuple):
    path: bytes
    file_id: int


def told(
    before: State,
    after: State,
    chosen: Callable[[bytes], bool] | None,
    folder: Path,
    *,
    only_stat: bool,
) -> dict[str, Any]:
    """``changes``, one a path, and whether there are more than are told."""
    made: list[dict[str, Any]] = []
    counts = {"added": 0, "removed": 0, "changed": 0}
    for change in _changed(before, after):
        if chosen is not None and not chosen(change["raw"]) and not chosen(change.get("raw_from", b"\0")):
            continue
        counts["changed" if change["change"] in ("changed", "renamed") else change["change"]] += 1
        if len(made) < _MOST_PATHS:
            if not only_stat:
                change |= _content(before, after, change, folder)
            made.append(_finished(change))
    return {"changes": made, "counts": counts, "truncated": sum(counts.values()) > len(made)}


def _finished(change: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in change.items() if not key.startswith("raw")}
    told |= _path_fields(change["raw"], "path")
    if "raw_from" in change:
        told |= _path_fields(change["raw_from"], "from")
    return told


def _path_fields(raw: bytes, name: str) -> dict[str, str]:
    fields = {name: raw.decode("utf-8", "replace")}
    if raw.decode("utf-8", "replace").encode() != raw:
        fields[f"{name}_b64"] = base64.b64encode(raw).decode()
    return fields


def _changed(before: State, after: State) -> Iterator[dict[str, Any]]:
    old, new = dict(before.tree.paths()), dict(after.tree.paths())
    renamed = {file_id: path for path, file_id in old.items() if new.get(path) != file_id}
    moved: set[bytes] = set()
    found: dict[bytes, dict[str, Any]] = {}
    for path, file_id in new.items():
        was = old.get(path)
        if was == file_id:
            change = _same_file(before, after, path, file_id)
            if change is not None:
                found[path] = change
        elif file_id in renamed and file_id in before.tree.nodes:
            moved.add(renamed[file_id])
            change = _same_file(before, after, path, file_id) or _entry(after, path, file_id, "renamed")
            found[path] = change | {"change": "renamed", "raw_from": renamed[file_id]}
        elif was is not None and before.tree.nodes[was].kind is after.tree.nodes[file_id].kind:
            change = _compared(before, after, path, was, file_id)
            if change is not None:
                found[path] = change
        else:
            found[path] = _entry(after, path, file_id, "added")
    for path, file_id in old.items():
        if path not in new and path not in moved:
            found[path] = _entry(before, path, file_id, "removed")
    for path in sorted(found):
        yield found[path]


def _entry(state: State, path: bytes, file_id: int, change: str) -> dict[str, Any]:
    node = state.tree.nodes[file_id]
    size = state.files[file_id].size if node.kind is trees.Kind.FILE else 0
    told: dict[str, Any] = {"raw": path, "change": change, "kind": node.kind.name.lower(), "bytes": size}
    told["raw_ids"] = (None, file_id) if change == "added" else (file_id, None)
    return told


def _same_file(before: State, after: State, path: bytes, file_id: int) -> dict[str, Any] | None:
    return _compared(before, after, path, file_id, file_id)


def _compared(before: State, after: State, path: bytes, was: int, file_id: int) -> dict[str, Any] | None:
    """What stands at a path at both moments, the same file or, as editors and databases do, another under
    the same name; None when it is equal.
    """
    one, other = before.tree.nodes[was], after.tree.nodes[file_id]
    attributes: dict[str, Any] = {
        name: [getattr(one, name), getattr(other, name)]
        for name in ("mode", "uid", "gid")
        if getattr(one, name) != getattr(other, name)
    }
    if one.target != other.target:
        attributes["target"] = [path.decode("utf-8", "replace") for path in (one.target, other.target)]
    kept = [before.xattrs.get(was, {}), after.xattrs.get(file_id, {})]
    if kept[0] != kept[1]:
        attributes["xattrs"] = [len(found) for found in kept]
    ranges = list(_ranges(before, was, after, file_id)) if one.kind is trees.Kind.FILE else []
    if not ranges and not attributes:
        return None
    return _told(before, after, path, (was, file_id), ranges) | {"attributes": attributes}


def _told(
    before: State, after: State, path: bytes, ids: tuple[int, int], ranges: list[tuple[int, int]]
) -> dict[str, Any]:
    return {
        "raw": path,
        "raw_ids": ids,
        "raw_ranges": ranges,
        "change": "changed",
        "kind": after.tree.nodes[ids[1]].kind.name.lower(),
        "size": [_size(before, ids[0]), _size(after, ids[1])],
        "bytes": sum(end - start for start, end in ranges),
    }


def _size(state: State, file_id: int) -> int:
    found = state.files.get(file_id)
    return found.size if found is not None else 0


def _ranges(before: State, old_id: int, after: State, new_id: int) -> Iterator[tuple[int, int]]:
    """Where the bytes really differ, neighbours joined; what one has and the other lacks too."""
    old, new = before.files[old_id], after.files[new_id]
    start = end = 0
    for begin, stop in _differing(before, old, after, new):
        if begin > end and end > start:
            yield start, end
            start = begin
        elif end == start:
            start = begin
        end = stop
    if end > start:
        yield start, end
    if old.size != new.size:
        yield min(old.size, new.size), max(old.size, new.size)


def _differing(
    before: State, old: extents.Extents, after: State, new: extents.Extents
) -> Iterator[tuple[int, int]]:
    both = min(old.size, new.size)
    shared = before.contents is after.contents
    found = extents.changes(old, new) if shared else state_changes.different(before, old, after, new)
    for begin, stop, _, _ in found:
        stop = min(stop, both)
        for at in range(begin, stop, 65536):
            until = min(stop, at + 65536)
            left, right = _read(before, old, at, until), _read(after, new, at, until)
            yield from ((at + one, at + other) for one, other in _unequal(left, right))


def _unequal(left: bytes, right: bytes) -> Iterator[tuple[int, int]]:
    """Ranges in which two runs of one length differ; gaps of less than 16 equal bytes are passed over."""
    if left == right:
        return
    import numpy as np

    places = np.flatnonzero(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8))
    breaks = np.flatnonzero(np.diff(places) > 16)
    firsts, lasts = np.append(0, breaks + 1), np.append(breaks, len(places) - 1)
    for first, last in zip(places[firsts].tolist(), places[lasts].tolist(), strict=True):
        yield first, last + 1


def _read(state: State, found: extents.Extents, start: int, end: int) -> bytes:
    parts = [state.contents.read(address, stop - begin) for begin, stop, address in found.pieces(start, end)]
    return b"".join(parts)


def _whole(state: State, file_id: int | None) -> bytes:
    if file_id is None:
        return b""
    found = state.files[file_id]
    return _read(state, found, 0, found.size)


def _content(before: State, after: State, change: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How the content differs, in the form that suits it."""
    if change["kind"] != "file":
        return {}
    old_id, new_id = change["raw_ids"]
    sizes = (_size(before, old_id or 0), _size(after, new_id or 0))
    if _is_database(before, old_id) and _is_database(after, new_id) and max(sizes) <= DATABASE_MAX_BYTES:
        found = _database(before, after, change, folder)
        if found is not None:
            return {"sqlite": found}
    if max(sizes) <= TEXT_MAX_BYTES:
        lines = _text(_whole(before, old_id), _whole(after, new_id), change)
        if lines is not None:
            return {"text": lines[:LINES_MAX], "text_truncated": len(lines) > LINES_MAX}
    ranges = change.get("raw_ranges") or [(0, max(sizes))]
    shown = [_shown(before, old_id, after, new_id, start, end) for start, end in ranges[:RANGES_MAX]]
    return {"ranges": shown, "ranges_total": len(ranges)}


def _shown(
    before: State, old_id: int | None, after: State, new_id: int | None, start: int, end: int
) -> dict[str, Any]:
    until = min(end, start + SHOWN_BYTES)
    old = _read(before, before.files[old_id], start, until) if old_id is not None else b""
    new = _read(after, after.files[new_id], start, until) if new_id is not None else b""
    return {"offset": start, "length": end - start, "before": old.hex(), "after": new.hex()}


def _text(old: bytes, new: bytes, change: dict[str, Any]) -> list[str] | None:
    if b"\0" in old or b"\0" in new:
        return None
    try:
        left, right = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return None
    if len(left) + len(right) > 20_000:
        return None  # difflib needs longer for it than anybody waits
    name = change["raw"].decode("utf-8", "replace")
    source = change.get("raw_from", change["raw"]).decode("utf-8", "replace")
    return list(difflib.unified_diff(left, right, f"a/{source}", f"b/{name}", lineterm=""))


def _is_database(state: State, file_id: int | None) -> bool:
    if file_id is None:
        return False
    found = state.files[file_id]
    return found.size >= 512 and _read(state, found, 0, 16) == b"SQLite format 3\0"


def _database(before: State, after: State, change: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Both databases with their journals put into a folder and opened as SQLite would after a crash."""
    with tempfile.TemporaryDirectory(prefix="spill-diff-", dir=folder) as scratch:
        places = []
        source = change.get("raw_from", change["raw"])
        for word, state, path in (("before", before, source), ("after", after, change["raw"])):
            place = Path(scratch) / word
            place.mkdir()
            for suffix in (b"", b"-wal", b"-journal"):
                file_id = state.tree.walk(path + suffix)
                if file_id is not None and file_id in state.files:
                    _put(state, file_id, place / f"db{suffix.decode()}")
            places.append(place / "db")
        return sqlite_diffs.compare(*places)


def _put(state: State, file_id: int, path: Path) -> None:
    found = state.files[file_id]
    with path.open("wb") as file:
        for offset, data in blocks(state.contents, found, 0, found.size):
            file.seek(offset)
            file.write(data)
        file.truncate(found.size)
