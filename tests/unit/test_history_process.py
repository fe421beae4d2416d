"""The history process of a replicator: started at need, it answers over HTTP, and it heals a damaged chunk from
another site's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web
from tests.support import histories
from tests.support.deployments import until
from tests.support.history_rigs import VOLUME, Rig

from diffkeeper import changes, http
from diffkeeper.domain import chunks, errors
from diffkeeper_replicator.history_main import HistorySettings
from diffkeeper_replicator.history_process import HistoryProcess
from diffkeeper_replicator.peers import Peers

TOKEN = "a token of tests"


def process(folder: Path, peers: tuple[str, ...] = ()) -> HistoryProcess:
    wanted = HistorySettings(
        site="west", dir=str(folder), volumes_dir=str(folder / "volumes"), token=TOKEN, peers=peers
    )

    async def trim(_volume: str, _sequence: int) -> int:
        return 0

    return HistoryProcess(wanted, dict, trim)


async def pid_of(history: HistoryProcess) -> int | None:
    return history.pid


async def test_a_history_process_is_started_at_need_and_again_after_its_death(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = histories.made_frames(31, 60)
    rig.append(log)
    rig.close()
    history = process(tmp_path)
    try:
        path = f"/v1/volumes/{VOLUME}/history/moment"
        assert (await history.call("GET", path))["position"] == str(log[-1].position)  # type: ignore[index]
        pid = await pid_of(history)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid_of(history), lambda found: found is None, "its end is noticed", 30)
        assert (await history.call("GET", path))["position"] == str(log[-1].position)  # type: ignore[index]
    finally:
        await history.close()
    assert await pid_of(history) is None


async def test_calls_pass_through_with_their_headers_and_their_errors(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = histories.made_frames(32, 60)
    rig.append(log)
    rig.close()
    history = process(tmp_path)
    app = http.make_app(TOKEN)
    history.add_routes(app)
    try:
        async with http.serve(app, "127.0.0.1", 0) as port:
            import aiohttp

            headers = {"Authorization": f"Bearer {TOKEN}"}
            base = f"http://127.0.0.1:{port}/v1/volumes"
            async with aiohttp.ClientSession(headers=headers) as session:
                async with session.get(f"{base}/{VOLUME}/history/restore?when=latest") as answer:
                    assert answer.headers["X-Diffkeeper-Position"] == str(log[-1].position)
                    assert answer.headers["Content-Type"] == changes.CONTENT_TYPE
                    assert len(await answer.read()) > 100
                async with session.get(f"{base}/{VOLUME}/history/restore?when=1.999") as answer:
                    assert (answer.status, (await answer.json())["error"]["reason"]) == (404, "not-kept")
                for path in ("../x", "a/../b", "a%00b"):
                    async with session.get(f"{base}/{VOLUME}/history/content?path={path}") as answer:
                        assert (await answer.json())["error"]["reason"] == "bad-path"
                async with session.get(f"{base}/unknown/history/moment") as answer:
                    assert answer.status == 404
    finally:
        await history.close()


async def test_a_chunk_is_had_from_the_first_site_that_has_it_good(tmp_path: Path) -> None:
    content = hashlib.sha256(b"chunk").digest() * 400
    rig = Rig(tmp_path)
    ref = rig.store.put(content)
    rig.close()
    good = process(tmp_path)

    async def wrong(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(ref.size))

    bad, fine = http.make_app(TOKEN), http.make_app(TOKEN)
    bad.add_routes([web.get("/v1/chunks/{hash}", wrong)])
    good.add_routes(fine)
    try:
        async with http.serve(bad, "127.0.0.1", 0) as one, http.serve(fine, "127.0.0.1", 0) as other:
            # Peers wait five seconds, and its start may take longer on a busy machine.
            with pytest.raises(errors.NotFound):
                await good.call("GET", f"/v1/chunks/{'00' * 32}")
            sites = ["http://127.0.0.1:9", f"http://127.0.0.1:{one}", f"http://127.0.0.1:{other}"]
            assert await asyncio.to_thread(Peers(sites, TOKEN).chunk, ref) == content
            assert await asyncio.to_thread(Peers(sites[:2], TOKEN).chunk, ref) is None
            unknown = chunks.Ref(bytes(32), 10)
            assert await asyncio.to_thread(Peers(sites, TOKEN).chunk, unknown) is None
            assert await asyncio.to_thread(Peers(sites, "another token").chunk, ref) is None
    finally:
        await good.close()
