"""Keyed values that several sites write: the ground on which all strategies but text stand.

Every key holds the writes that no other write has replaced, each named by its dot (stamp, site). The highest
dot is the value; the rest are concurrent losers. A write or a delete replaces exactly what its writer had seen
at the key, so a delete never takes away a concurrent write. After "Optimized conflict-free replicated sets"
(Bieniusa and others, 2012): what a state lacks although it has seen it was deleted, so no tombstone is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeGuard

from diffkeeper.domain import clocks
from diffkeeper_replicator.merging import wire
from diffkeeper_replicator.merging.causal import Origin, Vector

Dot = tuple[clocks.Stamp, str]
Key = Hashable

CELLS_MAX = 10_000_000


class Registers:
    """``cells``: key to its writes. Invariant: no key without a write."""

    def __init__(self) -> None:
        self.cells: dict[Key, dict[Dot, Any]] = {}

    def get(self, key: Key) -> Any:
        """The value at ``key``; KeyError when there is none."""
        writes = self.cells[key]
        return writes[max(writes)]

    def dot(self, key: Key) -> Dot:
        return max(self.cells[key])

    def items(self) -> Iterator[tuple[Key, Dot, Any]]:
        for key, writes in self.cells.items():
            dot = max(writes)
            yield key, dot, writes[dot]

    def write(self, key: Key, value: Any, origin: Origin) -> dict[Dot, Any]:
        """Returns the concurrent writes that stay beside this one."""
        left = self._replaced(key, origin)
        self.cells[key] = {**left, (origin.stamp, origin.site): value}
        return left

    def delete(self, key: Key, origin: Origin) -> dict[Dot, Any]:
        """Returns the concurrent writes that the delete did not know of and that therefore stay."""
        left = self._replaced(key, origin)
        if left:
            self.cells[key] = left
        else:
            self.cells.pop(key, None)
        return left

    def _replaced(self, key: Key, origin: Origin) -> dict[Dot, Any]:
        writes = self.cells.get(key)
        if not writes:
            return {}
        return {dot: value for dot, value in writes.items() if not origin.knew(dot[1], dot[0])}

    def losers(self) -> Iterator[tuple[Key, Dot, Any]]:
        for key, writes in self.cells.items():
            if len(writes) > 1:
                for dot in sorted(writes)[:-1]:
                    yield key, dot, writes[dot]

    def forget_losers(self, but: Key = None) -> None:
        """Safe at any time: what replaces a loser does so by what its writer has seen, not by name."""
        for key, writes in self.cells.items():
            if len(writes) > 1 and key != but:
                dot = max(writes)
                self.cells[key] = {dot: writes[dot]}

    def dump(self) -> list[Any]:
        sites = sorted({site for writes in self.cells.values() for _, site in writes})
        index = {site: number for number, site in enumerate(sites)}
        rows = [
            [key, [[stamp, index[site], value] for (stamp, site), value in writes.items()]]
            for key, writes in self.cells.items()
        ]
        return [sites, rows]

    def join(self, theirs: Registers, our_seen: Vector, their_seen: Vector) -> list[Key]:
        """Keys at which writes of both sides now stand beside each other."""
        met: list[Key] = []
        for key in [*self.cells, *(key for key in theirs.cells if key not in self.cells)]:
            ours, others = self.cells.get(key, {}), theirs.cells.get(key, {})
            kept = {
                dot: value
                for dot, value in ours.items()
                if dot in others or dot[0] > their_seen.get(dot[1], 0)
            }
            new = {
                dot: value
                for dot, value in others.items()
                if dot not in ours and dot[0] > our_seen.get(dot[1], 0)
            }
            if kept and new:
                met.append(key)
            if kept or new:
                self.cells[key] = {**kept, **new}
            else:
                self.cells.pop(key, None)
        return met


def load(
    dumped: Any,
    is_key: Callable[[Any], bool],
    is_value: Callable[[Any, Any], bool],
    seen: Vector,
) -> Registers:
    """Registers from another's ``dump``; Corrupt when it is not of that shape."""
    wire.expect(isinstance(dumped, tuple) and len(dumped) == 2, "registers")
    sites, rows = dumped
    wire.expect(isinstance(sites, tuple) and all(wire.is_site(site) for site in sites), "sites")
    wire.expect(isinstance(rows, tuple) and len(rows) <= CELLS_MAX, "cells")
    registers = Registers()
    for row in rows:
        wire.expect(isinstance(row, tuple) and len(row) == 2 and is_key(row[0]), "key")
        key, writes = row
        wire.expect(isinstance(writes, tuple) and len(writes) > 0 and key not in registers.cells, "writes")
        registers.cells[key] = dict(_write(write, key, sites, is_value) for write in writes)
        wire.expect(
            all(stamp <= seen.get(site, 0) for stamp, site in registers.cells[key]), "a write nobody has seen"
        )
    return registers


def _write(
    write: Any, key: Key, sites: tuple[str, ...], is_value: Callable[[Any, Any], bool]
) -> tuple[Dot, Any]:
    wire.expect(isinstance(write, tuple) and len(write) == 3, "write")
    stamp, site, value = write
    wire.expect(wire.is_stamp(stamp) and type(site) is int and 0 <= site < len(sites), "dot")
    wire.expect(is_value(key, value), "value")
    return (stamp, sites[site]), value


def is_changes(
    payload: Any, is_key: Callable[[Any], bool], is_value: Callable[[Any, Any], bool]
) -> TypeGuard[tuple[Any, ...]]:
    """Whether a payload is a list of writes (key, value) and deletes (key,)."""
    return (
        isinstance(payload, tuple)
        and len(payload) <= CELLS_MAX
        and all(
            isinstance(one, tuple)
            and 1 <= len(one) <= 2
            and is_key(one[0])
            and (len(one) == 1 or is_value(one[0], one[1]))
            for one in payload
        )
    )
