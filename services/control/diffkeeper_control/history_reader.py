"""The history of a volume through control: each call goes to a replicator that holds the volume's log, the
one that has most of it first, and to another where that one cannot answer.

Answers pass through block by block; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors, positions
from diffkeeper_control import registry
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.monitor import Monitor

PASSED_ON = ("Content-Type", "Content-Length", "X-Diffkeeper-Position", "X-Diffkeeper-At-Us")
_BLOCK_BYTES = 256 * 1024
_QUIET_S = 600.0
# What another site may answer better.
_ELSEWHERE = frozenset({"no-history", "history-lost", "unknown-volume", "chunk-damaged", "journal-damaged"})


class HistoryReader:
    def __init__(self, embedded: Embedded, known: registry.Registry, monitor: Monitor) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """``/v1/volumes/V/history/…`` as a replicator has it; ``site=`` asks for a certain one."""
        volume = self._registry.get(request.match_info["volume"])
        wanted = request.query.get("site")
        body = await request.read()
        trouble: errors.DiffKeeperError | None = None
        for site in [wanted] if wanted else self._holders(volume):
            if site not in self._embedded.sites:
                raise errors.NotFound(f"there is no site {site!r}", reason="unknown-site")
            try:
                return await self._ask(request, site, body)
            except errors.DiffKeeperError as error:
                if not isinstance(error, errors.Transient) and error.reason not in _ELSEWHERE:
                    raise
                trouble = trouble or error
        raise trouble or errors.Unreachable(
            f"no site that runs holds the history of volume {volume.name}",
            reason="no-history",
            hint="start a site that follows it: dkctl up --site SITE",
        )

    def _holders(self, volume: registry.Volume) -> list[str]:
        """Sites by how far their log goes; the leader's own replicator stopped at its promotion."""
        found: list[tuple[bool, positions.Position, str]] = []
        for site in self._embedded.sites:
            if self._embedded.is_stopped(site):
                continue
            status = self._monitor.replicator(site).volume(volume.name)
            if status is None:
                continue
            reached = positions.parse(str(status.get("journalled") or "0.0"))
            found.append((site != volume.leader, reached, site))
        return [site for _, _, site in sorted(found, reverse=True)]

    async def _ask(self, request: web.Request, site: str, body: bytes) -> web.StreamResponse:
        replicator = self._embedded.clients[site].replicator
        async with replicator.stream(request.method, str(request.rel_url), body, _QUIET_S) as answer:
            if answer.status >= 400:
                raise http.error_of(answer.status, await answer.read())
            response = web.StreamResponse(status=answer.status, headers=_kept(answer, site))
            await response.prepare(request)
            async for block in answer.content.iter_chunked(_BLOCK_BYTES):
                await response.write(block)
            await response.write_eof()
            return response


def _kept(answer: aiohttp.ClientResponse, site: str) -> Mapping[str, str]:
    kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
    return kept | {"X-Diffkeeper-Source": f"replicator:{site}"}
