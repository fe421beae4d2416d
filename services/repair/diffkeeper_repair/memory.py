"""What the service must not forget when it is killed, besides the damages: who is away or draining, how far the tour is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors


class Tour(msgspec.Struct):
    """One round of scrubbing over everything."""

    number: int = 1
    started_us: int = 0
    # The last stripe that was done, by its name; the next one goes on behind it.
    after: str = ""
    bytes_done: int = 0
    last_took_us: int | None = None
    last_ended_us: int | None = None


class _Kept(msgspec.Struct):
    away: dict[str, int] = {}  # node: since when
    draining: list[str] = []
    tour: Tour = msgspec.field(default_factory=Tour)


class Memory:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = _Kept()

    def load(self) -> None:
        try:
            self._kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            raise errors.Misconfigured(
                f"{self._path} cannot be read: {error}; it was left as it is",
                reason="memory-unreadable",
                hint="move it away: only the graces of absent nodes and the place of the scrub are lost",
            ) from error

    @property
    def tour(self) -> Tour:
        return self._kept.tour

    def away_since(self, node: str) -> int | None:
        return self._kept.away.get(node)

    def went_away(self, node: str, at_us: int) -> None:
        if node not in self._kept.away:
            self._kept.away[node] = at_us
            self.save()

    def came_back(self, node: str) -> None:
        if self._kept.away.pop(node, None) is not None:
            self.save()

    def is_draining(self, node: str) -> bool:
        return node in self._kept.draining

    def drain(self, node: str, *, draining: bool) -> None:
        if draining != self.is_draining(node):
            kept = set(self._kept.draining) ^ {node}
            self._kept.draining = sorted(kept)
            self.save()

    def save(self) -> None:
        atomic_files.write_bytes(self._path, msgspec.json.encode(self._kept))
