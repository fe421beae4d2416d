"""Orphan branches over the replicator's admin API; the table of calls is in ARCHITECTURE.md."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors, trees
from diffkeeper_replicator import comparisons, orphan_branches
from diffkeeper_replicator.comparisons import Compared, Piece
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.replica import Replica
from diffkeeper_replicator.replicator import Replicator
from diffkeeper_replicator.reports import path_text

T = TypeVar("T")


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Take(msgspec.Struct, forbid_unknown_fields=True):
    # As ``path_text`` gives them; none: all of the branch.
    paths: list[str]
    # A new or empty directory.
    to: str
    # Refuse when the main line changed any of them too.
    untouched: bool = False


def add_routes(app: web.Application, replicator: Replicator) -> None:
    calls = _Calls(replicator)
    volume = "/v1/volumes/{volume}/branches"
    app.add_routes(
        [
            web.get(volume, calls.every),
            web.get(f"{volume}/{{name}}", calls.compared),
            web.post(f"{volume}/{{name}}/take", calls.take),
            web.post(f"{volume}/{{name}}/drop", calls.drop),
        ]
    )


class _Calls:
    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator

    async def every(self, request: web.Request) -> web.Response:
        replica = self._replica(request)
        found = await asyncio.to_thread(
            lambda: [branch.summary() for branch in orphan_branches.find_all(replica.files.orphans)]
        )
        return http.json_response({"site": self._replicator.site, "branches": found})

    async def compared(self, request: web.Request) -> web.Response:
        """What a branch differs in from this site's directory, ``?path=`` for one path, ``?content=1`` with bytes."""
        replica = self._replica(request)
        text = request.query.get("path")
        content = request.query.get("content") == "1"

        def work(journal: Journal) -> dict[str, Any]:
            branch = _find(replica, request)
            changes = comparisons.selected(branch.changes(), _path(text) if text else None)
            found = comparisons.compare(
                branch, changes, replica.path, journal, _tree(replica), content=content
            )
            return {"branch": branch.summary(), "changes": [_row(one) for one in found]}

        answer = await _quietly(replica, work)
        replayer = replica.replayer
        position = str(replayer.applied.position) if replayer is not None else None
        return http.json_response({**answer, "site": self._replicator.site, "position": position})

    async def take(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Take)
        replica = self._replica(request)
        if not os.path.isabs(body.to):
            raise errors.Refused(f"{body.to!r} is not an absolute path", reason="bad-path")

        def work(journal: Journal) -> dict[str, Any]:
            branch = _find(replica, request)
            every = branch.changes()
            changes = every if not body.paths else []
            for text in body.paths:
                changes += [one for one in comparisons.selected(every, _path(text)) if one not in changes]
            if body.untouched:
                tree = _tree(replica)
                comparisons.check_untouched(comparisons.changed_in_main(branch, changes, journal, tree))
            written = comparisons.write_out(branch, changes, journal, Path(body.to))
            removed = [path_text(os.fsdecode(one.path)) for one in changes if one.kind == "removed"]
            return {"written": [path_text(path) for path in written], "removed": removed}

        return http.json_response(await _quietly(replica, work))

    async def drop(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Nothing)
        replica, name = self._replica(request), request.match_info["name"]
        await asyncio.to_thread(orphan_branches.drop, replica.files.orphans, name)
        return http.json_response({"dropped": name})

    def _replica(self, request: web.Request) -> Replica:
        return self._replicator.get(request.match_info["volume"])


@asynccontextmanager
async def _journal(replica: Replica) -> AsyncIterator[Journal]:
    """The journal that is followed with, or one of our own while this site leads."""
    if replica.intake is not None:
        yield replica.intake.journal
        return
    journal = await asyncio.to_thread(Journal.open, replica.files.journal)
    try:
        yield journal
    finally:
        journal.close()


async def _quietly(replica: Replica, work: Callable[[Journal], T]) -> T:
    """With nothing applied to the directory meanwhile; a program's directory is read as it is."""
    async with _journal(replica) as journal:
        if replica.replayer is not None:
            found: T = await replica.replayer.in_thread(lambda: work(journal))
            return found
        return await asyncio.to_thread(work, journal)


def _find(replica: Replica, request: web.Request) -> orphan_branches.Branch:
    return orphan_branches.find(replica.files.orphans, request.match_info["name"])


def _tree(replica: Replica) -> trees.Tree | None:
    opened = replica.replayer.directory if replica.replayer is not None else None
    return opened.tree() if opened is not None else None


def _path(text: str) -> bytes:
    if text.startswith("b64:"):
        try:
            return base64.b64decode(text.removeprefix("b64:"), validate=True)
        except ValueError as error:
            raise errors.Refused(f"{text!r} is not a path", reason="bad-path") from error
    return text.encode()


def _row(one: Compared) -> dict[str, Any]:
    change = one.change
    return {
        "path": path_text(os.fsdecode(change.path)),
        "before": path_text(os.fsdecode(change.before)) if change.before is not None else None,
        "kind": change.kind,
        "node": change.node,
        "mode": change.mode,
        "size": change.size,
        "bytes": sum(piece.length for piece in one.pieces),
        "main_size": one.main_size,
        "main_changed": one.main_changed,
        "ranges": [_piece(piece) for piece in one.pieces],
    }


def _piece(piece: Piece) -> dict[str, Any]:
    shown = {"offset": piece.offset, "length": piece.length}
    if piece.branch is None or piece.main is None:
        return shown
    return {
        **shown,
        "branch_b64": base64.b64encode(piece.branch).decode(),
        "main_b64": base64.b64encode(piece.main).decode(),
    }
