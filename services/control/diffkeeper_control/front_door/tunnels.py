"""Bytes passed both ways between a client and the program, without a boundary that we could know.

Plain TCP, and HTTP connections that became a WebSocket. They cannot outlive their program, so before it moves
they are closed: each as soon as it seems at rest (the program said something last, and nothing has come for a
moment), and all of them at the end of the grace.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from diffkeeper_control.front_door.wire import Cut, Wire

# At rest: the client has had its answer, and neither side has said anything for this long.
REST_S = 0.05
LOOK_S = 0.01


@dataclass(slots=True, eq=False)
class Tunnel:
    client: Wire
    upstream: Wire
    program_spoke_last: bool = True  # nothing asked, nothing owed
    last: float = field(default_factory=time.monotonic)

    def is_at_rest(self, now: float) -> bool:
        return self.program_spoke_last and now - self.last >= REST_S

    async def run(self) -> None:
        """Until either side is gone, or both have said that they are done."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(self.client, self.upstream, from_program=False))
                group.create_task(self._copy(self.upstream, self.client, from_program=True))
        except* Cut:
            pass
        finally:
            self.upstream.abort()

    async def _copy(self, source: Wire, sink: Wire, *, from_program: bool) -> None:
        while source.buffer or await source.fill():
            self.program_spoke_last, self.last = from_program, time.monotonic()
            sink.write(bytes(source.buffer))
            source.buffer.clear()
            await sink.flush()
        sink.end_sending()
        if from_program:
            raise Cut("the program is done: whatever the client still sends, nobody reads")

    def close(self) -> None:
        """Both sides see an orderly end after what was written to them."""
        self.client.end_sending()
        self.upstream.abort()


class Tunnels:
    def __init__(self) -> None:
        self._open: set[Tunnel] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, client: Wire, upstream: Wire) -> None:
        tunnel = Tunnel(client, upstream)
        self._open.add(tunnel)
        try:
            await tunnel.run()
        finally:
            self._open.discard(tunnel)

    async def drain(self, grace_s: float) -> int:
        """Close each once it is at rest, the others after the grace; how many had to be cut off."""
        deadline = time.monotonic() + grace_s
        while self._open and time.monotonic() < deadline:
            now = time.monotonic()
            for tunnel in [tunnel for tunnel in self._open if tunnel.is_at_rest(now)]:
                tunnel.close()
            await asyncio.sleep(LOOK_S)
        left = len(self._open)
        self.cut()
        return left

    def cut(self) -> None:
        for tunnel in list(self._open):
            tunnel.close()
