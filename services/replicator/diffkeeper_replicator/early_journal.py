"""The journal of a site that leads, brought to the end of its own stream before somebody else takes over.

A leader's replica journals nothing. The moment it follows it would have to read its whole reign back before it could
confirm a frame of the next one, and programs at level ``remote`` would wait for that, the longer the more was
written. So that work is begun while the old program still runs. Nothing is confirmed meanwhile: the frames are
this site's own. Where no move comes of it, it ends by itself.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from diffkeeper.domain import errors, positions
from diffkeeper_replicator.intake import Intake
from diffkeeper_replicator.replayer import Replayer

# Without a new role after this it was for nothing.
WAITS_S = 120.0


class EarlyJournal:
    """``running`` reads into ``intake``'s journal; whoever follows with them goes on with all three."""

    def __init__(self, intake: Intake, replayer: Replayer, running: asyncio.Task[None]) -> None:
        self.intake = intake
        self.replayer = replayer
        self.running = running
        self.expiry: asyncio.TimerHandle | None = None

    def keep(self) -> None:
        """Somebody follows with it."""
        if self.expiry is not None:
            self.expiry.cancel()

    async def reach_end(self, timeout_s: float) -> positions.Position:
        """Wait until the journal holds what the stream holds now, at most so long; where it is then."""
        intake = self.intake
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                target = await intake.furthest()
                while intake.journal.tip.position < target:
                    trouble = intake.trouble
                    if trouble is not None and not isinstance(trouble, errors.Transient):
                        raise trouble
                    intake.grown.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(intake.grown.wait(), 0.1)
        return intake.journal.tip.position

    async def end(self) -> None:
        """Nobody follows with it: everything is closed, the frames stay."""
        self.keep()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.intake.settle()
        await self.replayer.close(clean=False)
        self.intake.close()
