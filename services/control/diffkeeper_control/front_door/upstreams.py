"""Connections to the program: opened when it accepts, kept between requests, dropped when it moves."""

from __future__ import annotations

import time

from diffkeeper_control.front_door import wire
from diffkeeper_control.front_door.passage import Passage, Target
from diffkeeper_control.front_door.wire import Wire

CONNECT_TIMEOUT_S = 2.0
# A program may close a connection that it finds idle just when a request is sent on it. What must not be sent
# twice takes only one that was used a moment ago; programs keep them for seconds at least.
IDLE_MAX_S = 4.0
IDLE_MAX_UNSAFE_S = 0.5
KEPT_MAX = 256


class Upstreams:
    """The connections of one door to the program it leads to."""

    def __init__(self) -> None:
        # Invariant: all of one generation; the newest last.
        self._kept: list[tuple[Wire, float]] = []
        self._generation = -1
        self._used: set[Wire] = set()

    async def probe(self, target: Target) -> None:
        """Raises OSError while the program does not accept."""
        (await wire.connect(target.host, target.port, CONNECT_TIMEOUT_S)).abort()

    async def take(self, passage: Passage, *, safe: bool) -> Wire:
        """A connection of the passage's generation, with everything that may wait done. ``safe``: what is sent
        may be sent again. The passage has counted it as under way. Raises Refused and TimedOut.
        """
        while True:
            target, generation = await passage.enter()
            try:
                found = self._take_kept(generation, IDLE_MAX_S if safe else IDLE_MAX_UNSAFE_S)
                if found is None:
                    found = await wire.connect(target.host, target.port, CONNECT_TIMEOUT_S)
            except OSError:
                passage.answered()
                if passage.is_current(generation):
                    passage.lost_target()
                continue
            except BaseException:
                passage.answered()
                raise
            if passage.is_current(generation):
                passage.begin()
                self._used.add(found)
                return found
            # It was held, or led elsewhere, while this connected.
            passage.answered()
            found.abort()

    def give_back(self, upstream: Wire, passage: Passage, *, generation: int, keep: bool) -> None:
        """After its last byte was read. ``keep``: both sides would use it again."""
        self._used.discard(upstream)
        if keep and passage.is_current(generation) and upstream.is_fresh and len(self._kept) < KEPT_MAX:
            self._drop_older(generation)
            self._kept.append((upstream, time.monotonic()))
        else:
            upstream.abort()

    def drop_kept(self) -> None:
        for kept, _ in self._kept:
            kept.abort()
        self._kept.clear()

    def cut(self) -> int:
        """Abort all that is under way; how many there were."""
        used = len(self._used)
        for upstream in self._used:
            upstream.abort()
        self.drop_kept()
        return used

    def _take_kept(self, generation: int, idle_max_s: float) -> Wire | None:
        self._drop_older(generation)
        now = time.monotonic()
        while self._kept:
            kept, since = self._kept.pop()
            if kept.is_fresh and now - since <= idle_max_s:
                kept.heard = False
                return kept
            kept.abort()
        return None

    def _drop_older(self, generation: int) -> None:
        if generation != self._generation:
            self.drop_kept()
            self._generation = generation
