"""How often the ring is looked at, and how long a frame stays open: a decision, from what came lately.

Each frame costs every broker and replica about the same, whatever is in it: many small ones take the processors from
the program that is captured. So a frame stays open for longer where more records come, and while the stream cannot keep
up. A barrier that waits is never concerned: its frame is cut at once.
"""

from __future__ import annotations

# Up to so many records a second a frame is open for the shortest time, from so many on for the longest; between them
# it grows evenly.
CALM_RATE, BUSY_RATE = 1200.0, 2000.0
# Over how long rates are counted.
WINDOW_S = 0.05
# Between two looks no more bytes than this are to come, at the rate of the last window.
LOOK_BYTES = 512 * 1024


class Pace:
    """Times are seconds; ``now`` is of one clock that never goes back."""

    def __init__(self, least_s: float, most_s: float, now: float) -> None:
        # Invariant: least <= look <= linger <= most.
        self.linger_s = self.look_s = self._least_s = least_s
        self.linger_most_s = max(least_s, most_s)
        # When rates were taken last, and how many records and bytes there had been.
        self._taken = (now, 0, 0)
        self._records_rate = self._bytes_rate = 0.0

    def adapt(self, now: float, records: int, byte_count: int, *, is_behind: bool) -> None:
        """After a look: so many records and bytes there have been in all."""
        self._count(now, records, byte_count)
        wanted_s = self.linger_most_s if is_behind else self._wanted_s()
        if wanted_s > self.linger_s:
            self.linger_s = min(wanted_s, self.linger_s * 1.5)
        else:
            self.linger_s = max(wanted_s, self.linger_s * 0.8)
        self.look_s = max(self._least_s, min(self.linger_s, LOOK_BYTES / max(1.0, self._bytes_rate)))

    def _wanted_s(self) -> float:
        busy = min(1.0, max(0.0, (self._records_rate - CALM_RATE) / (BUSY_RATE - CALM_RATE)))
        return min(self.linger_most_s, self._least_s + (self.linger_most_s - self._least_s) * busy)

    def _count(self, now: float, records: int, byte_count: int) -> None:
        then, records_then, bytes_then = self._taken
        if now - then >= WINDOW_S:
            self._records_rate = (records - records_then) / (now - then)
            self._bytes_rate = (byte_count - bytes_then) / (now - then)
            self._taken = (now, records, byte_count)
