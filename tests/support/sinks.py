"""A sink that keeps what it is given, for tests of whatever writes deltas."""

from __future__ import annotations

from diffkeeper.domain import frames, limits
from diffkeeper.domain.deltas import Delta, Op


class ListSink:
    """Keeps deltas as a list, with the fidelity that held when each came."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.fidelity = frames.Fidelity.EXACT
        self.floor = frames.Fidelity.EXACT

    def add_write(self, file_id: int, offset: int, data: bytes | memoryview, at_us: int) -> None:
        assert len(data) <= limits.DELTA_MAX_DATA_BYTES
        self.deltas.append(Delta(Op.WRITE, file_id, offset, len(data), bytes(data), (), at_us))

    def add(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def note_fidelity(self, fidelity: frames.Fidelity) -> None:
        self.fidelity = max(self.fidelity, fidelity)

    def set_floor(self, fidelity: frames.Fidelity) -> None:
        self.floor = fidelity
        self.fidelity = max(self.fidelity, fidelity)

    def gap(self, cause: str, detail: str, file_id: int = 0, offset: int = 0, length: int = 0) -> None:
        self.add(Delta(Op.GAP, file_id, offset, length, args=(cause, detail)))
