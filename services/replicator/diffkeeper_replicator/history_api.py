"""What the history process answers; the replicator passes these calls on to it. ARCHITECTURE.md has the table."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from diffkeeper import changes, http
from diffkeeper.domain import chunks, deltas, errors, moments, positions, retention
from diffkeeper_replicator import history_measures, history_reports, history_streams, lazy_content
from diffkeeper_replicator.histories import Histories
from diffkeeper_replicator.named_branches import Branch, Caller
from diffkeeper_replicator.path_index import Touch, Wanted
from diffkeeper_replicator.pruning import Pruner
from diffkeeper_replicator.volume_history import VolumeHistory

T = TypeVar("T")
LOG_MAX_ROWS = 10_000
MEASURED_FRAMES = 100_000
_MOST_BUCKETS = 500
# Paths told with one frame; how many there are is told too.
_PATHS_A_ROW = 20


class _Tag(msgspec.Struct, forbid_unknown_fields=True):
    when: str


class HistoryApi:
    """``pool`` answers; ``unhurried`` does what nobody waits for."""

    def __init__(
        self,
        histories: Histories,
        pool: ThreadPoolExecutor,
        unhurried: ThreadPoolExecutor,
        now_us: Callable[[], int],
    ) -> None:
        self._histories = histories
        self._pool = pool
        self._unhurried = unhurried
        self._now_us = now_us

    def add_routes(self, app: web.Application) -> None:
        under = "/v1/volumes/{volume}/history"
        app.add_routes(
            [
                web.get("/healthz", self.health),
                web.post("/v1/grow", self.grow),
                web.get("/v1/chunks/{hash}", self.chunk),
                web.get(under, self.report),
                web.put(f"{under}/policy", self.set_policy),
                web.post(f"{under}/prune", self.prune),
                web.get(f"{under}/measure", self.measure),
                web.get(f"{under}/log", self.log),
                web.get(f"{under}/moment", self.moment),
                web.get(f"{under}/content", self.content),
                web.get(f"{under}/restore", self.restore),
                web.get(f"{under}/layout", self.layout),
                web.get(f"{under}/range", self.range),
                web.get(f"{under}/patch", self.patch),
                web.get(f"{under}/replay", self.replay),
                web.get(f"{under}/diff", self.diff),
                web.get(f"{under}/middle", self.middle),
                web.get(f"{under}/deltas", self.deltas),
                web.get(f"{under}/branches", self.branches),
                web.put(f"{under}/branches/{{name}}", self.set_branch),
                web.delete(f"{under}/branches/{{name}}", self.drop_branch),
                web.get(f"{under}/tags", self.tags),
                web.put(f"{under}/tags/{{name}}", self.set_tag),
                web.delete(f"{under}/tags/{{name}}", self.drop_tag),
            ]
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def history(self, request: web.Request) -> VolumeHistory:
        return self._histories.get(request.match_info["volume"])

    def now_us(self) -> int:
        return self._now_us()

    async def health(self, _request: web.Request) -> web.Response:
        return http.json_response({"ok": True})

    async def grow(self, _request: web.Request) -> web.Response:
        """Take in what the journals have; asked for from time to time."""

        def work() -> dict[str, Any]:
            grown: dict[str, Any] = {}
            for volume in self._histories.known():
                try:
                    grown[volume] = {"frames": self._histories.get(volume).grow()}
                except errors.DiffKeeperError as error:
                    grown[volume] = {"error": error.to_dict()}
            return grown

        loop = asyncio.get_running_loop()
        return http.json_response({"volumes": await loop.run_in_executor(self._unhurried, work)})

    async def chunk(self, request: web.Request) -> web.Response:
        """For other sites: a chunk that is good here."""
        try:
            digest = bytes.fromhex(request.match_info["hash"])
        except ValueError as error:
            raise errors.Refused("that is not a hash", reason="bad-request") from error
        store = self._histories.store

        def look() -> bytes | None:
            size = store.size_of(digest)
            return None if size is None else store.look(chunks.Ref(digest, size))

        data = await self.in_thread(look)
        if data is None:
            raise errors.NotFound("this chunk is not here", reason="unknown-chunk")
        return web.Response(body=data, content_type="application/octet-stream")

    async def report(self, request: web.Request) -> web.Response:
        """``what_if=`` a policy as JSON: what it would keep and free."""
        history, text = self.history(request), request.query.get("what_if")
        try:
            what_if = msgspec.json.decode(text, type=retention.Policy) if text else None
        except msgspec.DecodeError as error:
            raise errors.Refused(f"what_if is not a policy: {error}", reason="bad-policy") from error
        found = await self.in_thread(lambda: history_reports.report(history, self._now_us(), what_if))
        return http.json_response(found)

    async def measure(self, request: web.Request) -> web.Response:
        """The bytes of the newest frames in each form; ``frames=`` how many."""
        history = self.history(request)
        most = number(request, "frames") or MEASURED_FRAMES
        return http.json_response(await self.in_thread(lambda: history_measures.measure(history, most)))

    async def set_policy(self, request: web.Request) -> web.Response:
        policy, history = await http.read_body(request, retention.Policy), self.history(request)
        await self.in_thread(lambda: history.set_policy(policy))
        return http.json_response({"volume": history.volume, "policy": msgspec.to_builtins(history.policy)})

    async def prune(self, request: web.Request) -> web.Response:
        """What the policy lets go; the replicator then shortens its journal up to ``archived``."""
        history = self.history(request)

        def work() -> dict[str, Any]:
            done = Pruner(history).prune(self._now_us())
            freed = self._histories.drop_unused_chunks()
            return done | {"chunks": freed.chunks, "freed_bytes": freed.bytes}

        return http.json_response(await self.in_thread(work))

    async def log(self, request: web.Request) -> web.Response:
        history, wanted = self.history(request), _wanted(request)
        buckets = min(number(request, "activity") or 0, _MOST_BUCKETS)

        def work() -> dict[str, Any]:
            history.grow()
            rows = history.index.rows(wanted)
            return {
                "frames": [_told_row(row) for row in rows],
                "found": history.index.totals(wanted),
                "activity": history.index.activity(wanted, buckets) if buckets else None,
                "tags": history.tags,
            }

        return http.json_response(await self.in_thread(work))

    async def moment(self, request: web.Request) -> web.Response:
        point = await self._resolve(request, "when")
        return http.json_response({"position": str(point.position), "at_us": point.at_us})

    async def content(self, request: web.Request) -> web.StreamResponse:
        point, path = await self._resolve(request, "when"), paths_of(request)
        if len(path) != 1:
            raise errors.Refused("name one path", reason="bad-request")
        history = self.history(request)
        state = await self.in_thread(lambda: history.state_at(point.position))
        size, parts = history_streams.content(state, path[0])
        return await history_streams.send(
            request,
            self._pool,
            parts,
            content_type="application/octet-stream",
            headers=_where(point),
            size=size,
        )

    async def restore(self, request: web.Request) -> web.StreamResponse:
        point, history = await self._resolve(request, "when"), self.history(request)
        chosen, skip, upto = choose(paths_of(request)), number(request, "skip") or 0, number(request, "upto")
        state = await self.in_thread(lambda: history.state_at(point.position, upto))
        return await self._changes(request, history_streams.restored(history, state, chosen, skip), point)

    async def layout(self, request: web.Request) -> web.StreamResponse:
        """As ``restore`` without contents: what a tree that is filled later is made of."""
        point, history = await self._resolve(request, "when"), self.history(request)
        chosen = choose(paths_of(request))
        state = await self.in_thread(lambda: history.state_at(point.position))
        return await self._changes(request, history_streams.laid_out(history, state, chosen), point)

    async def range(self, request: web.Request) -> web.Response:
        """Bytes of files at a position, their digest first: ``part=`` key, offset and length, many times."""
        history, parts = self.history(request), lazy_content.parts_of(request.query.getall("part", []))
        position = positions.parse(request.query.get("when", ""))
        data = await self.in_thread(lambda: lazy_content.read(history.state_at(position), parts))
        return web.Response(body=data, content_type="application/octet-stream")

    async def patch(self, request: web.Request) -> web.StreamResponse:
        history = self.history(request)
        old, new = await self._resolve(request, "from"), await self._resolve(request, "to")
        states = await self.in_thread(lambda: history.states_at(old.position, new.position))
        return await self._changes(request, history_streams.patched(history, *states), new)

    async def replay(self, request: web.Request) -> web.StreamResponse:
        history = self.history(request)
        first, last = await self._resolve(request, "from"), await self._resolve(request, "to")
        if last.position < first.position:
            raise errors.Refused(
                f"{last.position} comes before {first.position}", reason="bad-range", hint="swap them"
            )
        states = await self.in_thread(lambda: history.states_at(first.position, last.position))
        return await self._changes(request, history_streams.replayed(history, *states), last)

    async def diff(self, request: web.Request) -> web.Response:
        history = self.history(request)
        old, new = await self._resolve(request, "from"), await self._resolve(request, "to")
        chosen, stat = choose(paths_of(request)), request.query.get("stat") == "1"

        def work() -> dict[str, Any]:
            from diffkeeper_replicator import diffs  # slow to import: a branch does not wait for it

            before, after = history.states_at(old.position, new.position)
            return diffs.told(before, after, chosen, history.folder, only_stat=stat)

        answer = await self.in_thread(work)
        head = {"from": str(old.position), "from_us": old.at_us, "to": str(new.position), "to_us": new.at_us}
        return http.json_response({"volume": history.volume, **head, **answer})

    async def middle(self, request: web.Request) -> web.Response:
        """The kept point half-way between two, neither of them; null when there is none."""
        first, last = await self._resolve(request, "from"), await self._resolve(request, "to")
        index = self.history(request).index
        found, count = await self.in_thread(lambda: index.middle(first.position, last.position))
        middle = {"position": str(found.position), "at_us": found.at_us} if found is not None else None
        return http.json_response(
            {"from": str(first.position), "to": str(last.position), "middle": middle, "between": count}
        )

    async def deltas(self, request: web.Request) -> web.Response:
        """The deltas of the frame at a position, in order, by path."""
        point, history = await self._resolve(request, "when"), self.history(request)
        found = await self.in_thread(lambda: history_streams.deltas_at(history, point.position))
        return http.json_response({"position": str(point.position), "deltas": found})

    async def tags(self, request: web.Request) -> web.Response:
        return http.json_response({"tags": self.history(request).tags})

    async def set_tag(self, request: web.Request) -> web.Response:
        body, name = await http.read_body(request, _Tag), request.match_info["name"]
        history = self.history(request)
        point = await self.in_thread(lambda: history.resolve(body.when, self._now_us()))
        await self.in_thread(lambda: history.set_tag(name, point.position))
        return http.json_response({"name": name, "position": str(point.position), "at_us": point.at_us})

    async def branches(self, request: web.Request) -> web.Response:
        kept, caller = self.history(request).branches, caller_of(request)

        def work() -> list[Branch]:
            kept.resume(caller)
            return kept.all()

        found = await self.in_thread(work)
        return http.json_response({"branches": [msgspec.to_builtins(branch) for branch in found]})

    async def set_branch(self, request: web.Request) -> web.Response:
        body, name = await http.read_body(request, _Tag), request.match_info["name"]
        history, caller = self.history(request), caller_of(request)

        def work() -> dict[str, Any]:
            history.branches.resume(caller)
            point = history.resolve(body.when, self._now_us())
            return history.branches.create(name, point, history.state_at(point.position), caller)

        return http.json_response(await self.in_thread(work))

    async def drop_branch(self, request: web.Request) -> web.Response:
        history, name = self.history(request), request.match_info["name"]
        return http.json_response(await self.in_thread(lambda: history.branches.drop(name)))

    async def drop_tag(self, request: web.Request) -> web.Response:
        history, name = self.history(request), request.match_info["name"]
        position = history.tag(name)
        if position is None:
            raise errors.NotFound(f"there is no tag {name!r}", reason="unknown-tag", hint="dkctl tag list")
        await self.in_thread(lambda: history.set_tag(name, None))
        return http.json_response({"name": name, "position": str(position)})

    # -- inside ----------------------------------------------------------------------------------------------

    async def _resolve(self, request: web.Request, key: str) -> moments.Point:
        history, when = self.history(request), request.query.get(key, "latest")
        return await self.in_thread(lambda: history.resolve(when, self._now_us()))

    async def _changes(self, request: web.Request, parts: Any, point: moments.Point) -> web.StreamResponse:
        return await history_streams.send(
            request, self._pool, parts, content_type=changes.CONTENT_TYPE, headers=_where(point)
        )


def caller_of(request: web.Request) -> Caller | None:
    """The replicator that passed this call on, as a filler is to ask it."""
    address = request.headers.get("X-Diffkeeper-Replicator")
    return Caller(address, request.headers["Authorization"].removeprefix("Bearer ")) if address else None


def _where(point: moments.Point) -> dict[str, str]:
    return {"X-Diffkeeper-Position": str(point.position), "X-Diffkeeper-At-Us": str(point.at_us)}


def number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise errors.Refused(f"{name}={text!r} is not a number", reason="bad-request")
    return int(text)


def paths_of(request: web.Request) -> list[bytes]:
    """``path=`` as text or ``path_b64=`` as its bytes, either many times."""
    found = [text.encode("utf-8", "surrogateescape") for text in request.query.getall("path", [])]
    for text in request.query.getall("path_b64", []):
        try:
            found.append(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise errors.Refused("path_b64 is not base64", reason="bad-request") from error
    cleaned = [path.strip(b"/") for path in found]
    for path in cleaned:
        if path not in (b"", b".") and not changes.is_path(path):
            raise errors.Refused(f"{path!r} is not a path inside a volume", reason="bad-path")
    return [b"" if path == b"." else path for path in cleaned]


def choose(paths: list[bytes]) -> Callable[[bytes], bool] | None:
    """Whether a path is one of these, or below one of them; None when all are."""
    if not paths or b"" in paths:
        return None
    exact, below = frozenset(paths), tuple(path + b"/" for path in paths)
    return lambda path: path in exact or path.startswith(below)


def _wanted(request: web.Request) -> Wanted:
    after = request.query.get("after")
    pattern = request.query.getall("path", []) or None
    paths = [pattern[0].encode("utf-8", "surrogateescape")] if pattern else []
    if "path_b64" in request.query:
        paths = paths_of(request)
    limit = number(request, "limit")
    return Wanted(
        after=_sequence(after) if after else None,
        limit=LOG_MAX_ROWS if limit is None else min(limit, LOG_MAX_ROWS),
        path=paths[0] if paths else None,
        since_us=number(request, "since_us"),
        until_us=number(request, "until_us"),
        min_bytes=number(request, "min_bytes"),
    )


def _sequence(after: str) -> int:
    return positions.parse(after).sequence


_OPS = {1 << int(op): op.name.lower() for op in deltas.Op}


def _told_row(row: dict[str, Any]) -> dict[str, Any]:
    touches: list[Touch] = row["paths"]
    return row | {
        "paths": [
            {
                **path_fields(touch.path),
                "ops": [name for bit, name in _OPS.items() if bit & touch.ops],
                "deltas": touch.deltas,
                "bytes": touch.bytes,
            }
            for touch in touches[:_PATHS_A_ROW]
        ],
        "paths_total": len(touches),
    }


def path_fields(raw: bytes) -> dict[str, str]:
    """``path`` for people, and ``path_b64`` when its bytes are not UTF-8."""
    fields = {"path": raw.decode("utf-8", "replace")}
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        fields["path_b64"] = base64.b64encode(raw).decode("ascii")
    return fields
