"""A program asks whether what it wrote is safe, where, and since when; and is told what is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.brokers import Brokers
from tests.support.capture_rig import CaptureRig

pytestmark = pytest.mark.disaster


@pytest.fixture
async def rig(tmp_path: Path, brokers: Brokers) -> AsyncIterator[CaptureRig]:
    made = CaptureRig(tmp_path, brokers)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
        print(made.agent_log() if (tmp_path / "agent.log").exists() else "")


class Asker:
    def __init__(self, rig: CaptureRig) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(rig.gate.with_name("receipts.sock")))
        self._lines = self._socket.makefile("rb")

    def ask_in_words(self, line: bytes) -> Any:
        self._socket.sendall(line + b"\n")
        return json.loads(self._lines.readline())

    def ask(self, **question: Any) -> Any:
        return self.ask_in_words(json.dumps(question).encode())

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


async def test_a_receipt_says_what_is_safe_where_and_since_when(rig: CaptureRig) -> None:
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    asker = await asyncio.to_thread(Asker, rig)

    async def ask(**question: Any) -> Any:
        return await asyncio.to_thread(lambda: asker.ask(volume="v", **question))

    (rig.volume / "file").write_bytes(b"written before it was asked")
    told = await ask()
    assert (told["safe"], told["level"], told["holders"]) == (True, "site", ["spool:east", "stream:east"])
    assert told["since_us"] <= time.time_ns() // 1000
    again = await ask()
    assert again == told, "nothing was written since, so it is safe since then"
    synced = await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    assert {**synced, "safe": True} == told
    waits = await ask(level="remote", timeout_s=0)
    assert (waits["safe"], waits["since_us"], waits["position"]) == (False, None, told["position"])
    west = asyncio.create_task(rig.confirm())
    remote = await ask(level="remote", timeout_s=30)
    assert remote["safe"] and "replica:west" in remote["holders"]
    assert remote["since_us"] >= told["since_us"]
    west.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await west
    await asyncio.to_thread(asker.close)


async def test_a_question_that_is_none_gets_one_clear_error(rig: CaptureRig) -> None:
    await rig.start_agent()
    asker = await asyncio.to_thread(Asker, rig)

    async def reason(line: bytes) -> str:
        answer = await asyncio.to_thread(asker.ask_in_words, line)
        return str(answer["error"]["reason"])

    assert await reason(b'{"volume": "x"}') == "no-such-volume"
    assert await reason(b'{"volume": "x", "surprise": 1}') == "bad-request"
    assert await reason(b"what?") == "bad-request"
    assert await reason(b'{"volume": "x", "timeout_s": 1e9}') == "bad-request"
    assert await reason(b"x" * 100_000) == "bad-request"
    await asyncio.to_thread(asker.close)
    assert rig.agent is not None and rig.agent.poll() is None


async def test_a_stranger_is_told_nothing(rig: CaptureRig) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    await rig.start_agent()
    await rig.attach()
    await rig.until_capturing()
    for directory in (rig.base, *rig.base.parents):
        if directory.stat().st_uid == 0 and "pytest" in str(directory):
            directory.chmod(0o755)
    ask = """
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
os.write(s.fileno(), b'{"volume": "v"}\\n'); print(json.loads(s.makefile().readline())["error"]["reason"])
"""
    process = await asyncio.create_subprocess_exec(
        "python3", "-c", ask, str(rig.gate.with_name("receipts.sock")), stdout=-1, user=65534, group=65534
    )
    assert (await process.communicate())[0] == b"not-yours\n"
