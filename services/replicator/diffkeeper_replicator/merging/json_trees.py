"""A JSON value as cells, one for each path, and back; and what an edit changed of it.

A path is a row of keys and, for the elements of lists, places. The cell of an object or list only says that it
is one: what is in it has cells of its own, so that a change inside survives a concurrent delete around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from diffkeeper_replicator.merging import json_patches, places
from diffkeeper_replicator.merging.causal import Origin
from diffkeeper_replicator.merging.json_text import Kind, Node
from diffkeeper_replicator.merging.keyed import Change
from diffkeeper_replicator.merging.places import Place
from diffkeeper_replicator.merging.registers import Dot, Registers

Path = tuple[str | Place, ...]


@dataclass(slots=True)
class Branch:
    """A value with the paths it was made of. ``marked``: its own cell says what it is. ``hidden`` are paths
    that lost against a value of another kind.
    """

    path: Path
    node: Node
    latest: Dot
    marked: bool
    members: dict[str, Branch] = field(default_factory=dict)
    items: list[tuple[Place, Branch]] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)

    def children(self) -> Iterator[Branch]:
        yield from self.members.values()
        for _, one in self.items:
            yield one

    def paths_below(self) -> Iterator[Path]:
        yield from self.hidden
        for one in self.children():
            yield one.path
            yield from one.paths_below()


def grown(cells: Registers) -> Branch | None:
    """The value that the cells make up."""
    children: dict[Path, set[str | Place]] = {}
    for key in cells.cells:
        path: Any = key
        while isinstance(path, tuple) and path:
            steps = children.setdefault(path[:-1], set())
            if path[-1] in steps:
                break
            steps.add(path[-1])
            path = path[:-1]
    return _grown((), cells, children)


def _grown(path: Path, cells: Registers, children: dict[Path, set[str | Place]]) -> Branch | None:
    below = [_grown((*path, step), cells, children) for step in children.get(path, ())]
    members = {one.path[-1]: one for one in below if one and isinstance(one.path[-1], str)}
    items = sorted(
        ((one.path[-1], one) for one in below if one and not isinstance(one.path[-1], str)),
        key=lambda item: item[0],
    )
    claims: list[tuple[Dot, str]] = []
    value = ""
    if path in cells.cells:
        value = cells.get(path)
        claims.append((cells.dot(path), value if value in ("{", "[") else Kind.SCALAR.value))
    if members:
        claims.append((max(one.latest for one in members.values()), "{"))
    if items:
        claims.append((max(one.latest for _, one in items), "["))
    if not claims:
        return None
    latest, kind_value = max(claims)
    kind = Kind(kind_value)
    branch = Branch(path, Node(kind, raw=value if kind is Kind.SCALAR else ""), latest, False)
    branch.marked = value == kind_value or (kind is Kind.SCALAR)
    if kind is Kind.OBJECT:
        ordered = sorted(members, key=lambda key: (members[key].latest, key))
        branch.members = {str(key): members[key] for key in ordered}
        branch.node.members = {key: one.node for key, one in branch.members.items()}
    if kind is Kind.LIST:
        branch.items = items
        branch.node.items = [one.node for _, one in items]
    left = ([] if kind is Kind.OBJECT else [*members.values()]) + (
        [] if kind is Kind.LIST else [one for _, one in items]
    )
    branch.hidden = [lost for one in left for lost in (one.path, *one.paths_below())]
    return branch


class Difference:
    """The changes that turn ``branch`` into ``node``."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._number = 0
        self.changes: list[Change] = []

    def between(self, path: Path, branch: Branch | None, node: Node) -> None:
        if branch is None or branch.node.kind is not node.kind:
            if branch is not None:
                self._clear(branch)
            self._write(path, node)
        elif node.kind is Kind.SCALAR:
            if branch.node.raw != node.raw:
                self.changes.append((path, node.raw))
        else:
            if not branch.marked:
                self.changes.append((path, node.kind.value))
            if node.kind is Kind.OBJECT:
                self._object(path, branch, node)
            else:
                self._list(path, branch, node)

    def _object(self, path: Path, branch: Branch, node: Node) -> None:
        for key, one in branch.members.items():
            if key not in node.members:
                self._remove(one)
        for key, new in node.members.items():
            self.between((*path, key), branch.members.get(key), new)

    def _list(self, path: Path, branch: Branch, node: Node) -> None:
        partners = {new: old for old, new in json_patches.aligned(branch.node.items, node.items)}
        kept = set(partners.values())
        for old, (_, one) in enumerate(branch.items):
            if old not in kept:
                self._remove(one)
        last_partner = max(partners, default=-1)
        before = places.START
        for number, new in enumerate(node.items):
            if number in partners:
                place, one = branch.items[partners[number]]
                self.between((*path, place), one, new)
                before = place
            else:
                self._number += 1
                at_end = number > last_partner
                self._write((*path, places.put(before, at_end, self._origin, self._number)), new)

    def _write(self, path: Path, node: Node) -> None:
        self.changes.append((path, node.raw if node.kind is Kind.SCALAR else node.kind.value))
        for key, one in node.members.items():
            self._write((*path, key), one)
        for one in node.items:
            self._number += 1
            self._write((*path, places.put(places.START, True, self._origin, self._number)), one)

    def _remove(self, branch: Branch) -> None:
        self.changes.append((branch.path,))
        self._clear(branch)

    def _clear(self, branch: Branch) -> None:
        self.changes += [(path,) for path in branch.paths_below()]
