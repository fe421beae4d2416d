"""The port to a merge strategy: what one file's content is made of so that edits of several sites join.

A ``Document`` is a file at one site. ``edit`` takes what a program made of the file and gives back the update
for the other sites; ``merge`` takes theirs. Updates may come late, twice and in any order: one that needs
another first is held until that is there. Documents that merged the same updates have the same ``content``.

What the caller promises: stamps come from the site's hybrid logical clock; a site's name belongs to that site
alone (updates are believed about their site: who may say what is checked before); and a site that loads an
older state merges the updates it has itself sent since then before its next ``edit``. Whoever calls ``edit``
writes ``content()`` back to the file where it is not what the program wrote.

Strategies are found by the entry point group ``diffkeeper.mergers``; each has to pass
``tests/contracts/test_merger.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from diffkeeper.domain import clocks

# Of each side of a conflict this much is told; the whole of it is in the log.
CONFLICT_SHOWN_BYTES = 4096
# An update or a state as it comes over the network, and what it may become when decompressed.
UPDATE_MAX_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Conflict:
    """Two sites changed the same thing, neither having seen the other's change.

    ``ours`` is what was there before this update, ``theirs`` what ``site`` wrote at ``stamp``; both are cut
    at ``CONFLICT_SHOWN_BYTES``. ``automatic``: both changes are in the merged file. Otherwise the later one
    is, and a person should look. The same update merged again may tell its conflict again: its name is
    (kind, site, stamp).
    """

    kind: str
    ours: bytes
    theirs: bytes
    site: str
    stamp: clocks.Stamp
    automatic: bool


@dataclass(frozen=True)
class Blame:
    """Who wrote this, and when. ``where`` is a line number from 1, a key, or a table and row."""

    where: str
    site: str
    stamp: clocks.Stamp


@dataclass(frozen=True)
class Loser:
    """A whole version that lost against a later one and belongs into a conflict copy."""

    site: str
    stamp: clocks.Stamp
    content: bytes


class Document(Protocol):
    """One file's mergeable state at one site."""

    def edit(
        self,
        content: bytes,
        stamp: clocks.Stamp,
        site: str,
        changed: Sequence[tuple[int, int]] | None = None,
    ) -> bytes:
        """The file is now ``content``; what the others have to merge, ``b""`` when nothing changed.

        ``changed`` are ranges (offset, length) of the new content that were written; outside them, a file
        of the same size is what it was. Refused, with the document as it was, when the strategy cannot
        hold such content; ``reason`` says why.
        """

    def merge(self, update: bytes) -> Sequence[Conflict]:
        """Take in an update or a state of another site. Corrupt, with the document as it was, for garbage."""

    def content(self) -> bytes:
        """The merged file."""

    def state(self) -> bytes:
        """Everything, to be merged elsewhere by ``merge``; ``load`` of it gives an equal document."""

    def compact(self) -> None:
        """Drop what all known sites have seen. The caller knows that they have."""

    def blame(self) -> list[Blame]:
        """Who and when, line by line or key by key."""


class KeepsLosers(Protocol):
    """A document whose conflicts leave whole versions over, until ``compact``."""

    def losers(self) -> list[Loser]: ...


class Merger(Protocol):
    """A strategy: makes documents of one kind."""

    name: str

    def accepts(self, path: str, content: bytes) -> bool:
        """Whether the strategy would take this file without being told to."""

    def new(self, site: str) -> Document: ...

    def load(self, state: bytes, site: str) -> Document:
        """The document ``state`` was taken from, at ``site``. Corrupt when it is no state of this strategy."""
