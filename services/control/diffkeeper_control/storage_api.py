"""The calls of the admin API that concern storage nodes as processes; what they hold, the repair service says itself."""

from __future__ import annotations

from aiohttp import web

from diffkeeper import http
from diffkeeper_control.api import EmptyBody, StopBody
from diffkeeper_control.storage_nodes import StorageNodes


def add_routes(app: web.Application, storage: StorageNodes) -> None:
    async def status(_request: web.Request) -> web.Response:
        return http.json_response(storage.status())

    async def stop(request: web.Request) -> web.Response:
        body = await http.read_body(request, StopBody)
        return http.json_response(await storage.stop_node(request.match_info["node"], kill=body.kill))

    async def start(request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await storage.start_node(request.match_info["node"]))

    async def replace(request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await storage.replace_node(request.match_info["node"]))

    async def remove(request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await storage.remove_node(request.match_info["node"]))

    app.add_routes(
        [
            web.get("/v1/storage", status),
            web.post("/v1/storage/nodes/{node}/stop", stop),
            web.post("/v1/storage/nodes/{node}/start", start),
            web.post("/v1/storage/nodes/{node}/replace", replace),
            web.post("/v1/storage/nodes/{node}/remove", remove),
        ]
    )
