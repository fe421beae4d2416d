"""``diffkeeper-door``: the doors of the sites on this machine.

Its doors are opened by control, over HTTP, and stay as they are while control is away.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from aiohttp import web

from diffkeeper import __version__, http, settings
from diffkeeper.domain import errors
from diffkeeper.service import Scope, run_service
from diffkeeper_control.front_door.doors import Doors, Order


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    timeout_ms: int = 1000


class DoorApi:
    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def app(self, token: str) -> web.Application:
        app = http.make_app(token)
        door = "/v1/doors/{volume}"
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/v1/status", self._status),
                web.put(door, self._put),
                web.delete(door, self._delete),
                web.post(f"{door}/drain", self._drain),
            ]
        )
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return http.json_response({"ok": True, "version": __version__})

    async def _status(self, _: web.Request) -> web.Response:
        return http.json_response({"version": __version__, "doors": self._doors.statuses()})

    async def _put(self, request: web.Request) -> web.Response:
        order = await http.read_body(request, Order)
        if not (0 < order.listen_port < 65536 and 0 < order.port < 65536):
            raise errors.Refused("a port is a number from 1 to 65535", reason="bad-request")
        return http.json_response(await self._doors.put(request.match_info["volume"], order))

    async def _delete(self, request: web.Request) -> web.Response:
        await self._doors.remove(request.match_info["volume"])
        return http.json_response({})

    async def _drain(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, DrainBody)
        door = self._doors.get(request.match_info["volume"])
        return http.json_response(await door.drain(body.timeout_ms / 1000))


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-door", description="Front doors of volumes.")
    parser.add_argument("--host", default="127.0.0.1", help="where control gives its orders")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-file", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()

    async def serve(scope: Scope) -> None:
        doors = Doors()
        api = DoorApi(doors).app(settings.read_token(options.token_file))
        async with http.serve(api, options.host, options.port) as port:
            scope.ready(address=f"http://{options.host}:{port}")
            await scope.stopping.wait()
            await doors.close()

    run_service("diffkeeper-door", serve)


if __name__ == "__main__":
    main()
