"""Control's admin API and the repair service, as the operator asks them. Every call is idempotent or says what it found."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper_operator import specs, views
from diffkeeper_operator.observations import Control

ASK_S = 10.0
# The chain and every replica, to the byte.
VERIFY_S = 1800.0
# A branch of a large volume without reflinks is a copy.
BRANCH_S = 600.0


class ControlClient:
    def __init__(self, session: aiohttp.ClientSession, address: str, token: str, repair: str) -> None:
        self._session = session
        self._address = address.rstrip("/")
        self._repair = repair.rstrip("/")
        self._token = token

    async def look(self, sac: specs.Sac) -> Control:
        """Everything about its volume. What cannot be asked is part of the answer."""
        volume = sac.known_volume
        try:
            status = await self._call("GET", "/v1/status")
            sites = views.read(status.get("sites", []), tuple[views.Site, ...])
            seen = await self.volume(volume)
        except errors.DiffKeeperError as error:
            return Control(failure=error)
        parity, failure = await self._parity()
        return Control(
            sites=sites,
            volume=seen,
            history=await self._history(volume) if seen is not None else None,
            parity=parity,
            parity_failure=failure,
        )

    async def volume(self, volume: str) -> views.Volume | None:
        try:
            return views.read(await self._call("GET", _path(volume)), views.Volume)
        except errors.NotFound:
            return None

    async def attach(self, sac: specs.Sac, order: dict[str, Any]) -> None:
        await self._call("POST", _path(sac.known_volume, "attach"), order, 60.0)

    async def detach(self, volume: str) -> None:
        await self._call("POST", _path(volume, "detach"), {}, 60.0)

    async def verify(self, volume: str) -> views.Verification:
        return views.read(await self._call("POST", _path(volume, "verify"), {}, VERIFY_S), views.Verification)

    async def keep(self, volume: str, policy: dict[str, Any]) -> None:
        await self._call("PUT", _path(volume, "history/policy"), policy)

    async def failover(self, volume: str, body: dict[str, Any]) -> views.Operation:
        return views.read(await self._call("POST", _path(volume, "failover"), body), views.Operation)

    async def operation(self, operation: str) -> views.Operation:
        return views.read(
            await self._call("GET", f"/v1/operations/{quote(operation, safe='')}"), views.Operation
        )

    async def operations(self, volume: str) -> tuple[views.Operation, ...]:
        answer = await self._call("GET", f"/v1/operations?{urlencode({'volume': volume})}")
        return views.read(answer, views.Operations).operations

    async def moment(self, volume: str, when: str) -> views.Moment:
        """The kept position that ``when`` means now."""
        where = _path(volume, f"history/moment?{urlencode({'when': when})}")
        return views.read(await self._call("GET", where, None, BRANCH_S), views.Moment)

    async def branch(self, volume: str, name: str, when: str) -> views.Branch:
        where = _path(volume, f"history/branches/{quote(name, safe='')}")
        return views.read(await self._call("PUT", where, {"when": when}, BRANCH_S), views.Branch)

    async def _history(self, volume: str) -> views.History | None:
        try:
            return views.read(await self._call("GET", _path(volume, "history")), views.History)
        except (errors.NotFound, errors.Transient):
            # No site keeps it yet, or none that runs; that is what Recoverable says.
            return None

    async def _parity(self) -> tuple[views.Parity | None, errors.DiffKeeperError | None]:
        if not self._repair:
            return None, None
        try:
            answer = await http.call(
                self._session, "GET", f"{self._repair}/v1/health", token=self._token, timeout_s=ASK_S
            )
            return views.read(answer, views.Parity), None
        except errors.DiffKeeperError as error:
            return None, error

    async def _call(self, method: str, path: str, body: Any = None, timeout_s: float = ASK_S) -> Any:
        return await http.call(
            self._session, method, self._address + path, token=self._token, body=body, timeout_s=timeout_s
        )


def _path(volume: str, action: str = "") -> str:
    return f"/v1/volumes/{quote(volume, safe='')}" + (f"/{action}" if action else "")
