"""The content of files as documents: the port that mergers fill, and the one that takes files as a whole.

The last writer by clock has the file; who loses keeps its bytes in a conflict copy, which is the caller's to
write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from diffkeeper.domain import clocks, errors, shared_ops

CONFLICT_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Conflict:
    kind: str
    ours: bytes
    theirs: bytes
    site: str
    stamp: clocks.Stamp
    automatic: bool


class Document(Protocol):
    def edit(
        self,
        content: bytes,
        stamp: clocks.Stamp,
        site: str,
        changed: Sequence[tuple[int, int]] | None = None,
    ) -> bytes: ...
    def merge(self, update: bytes) -> Sequence[Conflict]: ...
    def content(self) -> bytes: ...
    def state(self) -> bytes: ...
    def compact(self) -> None: ...


class Merger(Protocol):
    name: str

    def accepts(self, path: str, content: bytes) -> bool: ...
    def new(self, site: str) -> Document: ...
    def load(self, state: bytes, site: str) -> Document: ...


class WholeFile:
    """A register: the content with the highest (stamp, site). ``basis`` is the version it was made from, so that
    a version that replaces another knowingly is no conflict.
    """

    def __init__(self, versions: list[list[Any]] | None = None) -> None:
        # [stamp, site, content, basis stamp, basis site]; one, or none yet.
        self._version: list[Any] | None = versions[0] if versions else None

    def edit(
        self,
        content: bytes,
        stamp: clocks.Stamp,
        site: str,
        changed: Sequence[tuple[int, int]] | None = None,
    ) -> bytes:
        before = self._version
        if before is not None and before[2] == content:
            return b""
        basis = [0, ""] if before is None else before[:2]
        self._version = [stamp, site, content, *basis]
        return self.state()

    def merge(self, update: bytes) -> Sequence[Conflict]:
        theirs, ours = _read(update), self._version
        if not theirs or (ours is not None and theirs[0][:2] == ours[:2]):
            return ()
        other = theirs[0]
        if ours is None:
            self._version = other
            return ()
        wins = (other[0], other[1]) > (ours[0], ours[1])
        if wins:
            self._version = other
        knew = other[3:] == ours[:2] if wins else ours[3:] == other[:2]
        if knew or ours[2] == other[2]:
            return ()
        sides = [version[2][:CONFLICT_BYTES_MAX] for version in (ours, other)]
        return (Conflict("opaque", sides[0], sides[1], other[1], other[0], False),)

    def content(self) -> bytes:
        return b"" if self._version is None else bytes(self._version[2])

    def state(self) -> bytes:
        packed: bytes = msgpack.packb([] if self._version is None else [self._version])
        return packed

    def compact(self) -> None:
        """There is nothing but the last version."""


class WholeFiles:
    name = "opaque"

    def accepts(self, path: str, content: bytes) -> bool:
        return True

    def new(self, site: str) -> WholeFile:
        return WholeFile()

    def load(self, state: bytes, site: str) -> WholeFile:
        return WholeFile(_read(state))


def _read(update: bytes) -> list[list[Any]]:
    try:
        versions = msgpack.unpackb(
            update, raw=False, max_array_len=5, max_map_len=0, max_bin_len=shared_ops.RECORD_MAX_BYTES
        )
        if len(versions) > 1:
            raise ValueError("more than one version")
        for stamp, site, content, basis, basis_site in versions:
            numbers = all(isinstance(each, int) and 0 <= each <= clocks.STAMP_MAX for each in (stamp, basis))
            words = isinstance(site, str) and isinstance(basis_site, str)
            if not numbers or not words or not isinstance(content, bytes):
                raise ValueError("a version is malformed")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise errors.Corrupt(
            f"an update of a file cannot be read ({error!r}); nothing of it was taken",
            reason="malformed-update",
        ) from error
    return list(versions)


_MERGERS: dict[str, Merger] = {"opaque": WholeFiles()}


def choose(path: bytes, content: bytes) -> Merger:
    """The merger for a file that is new to the volume."""
    return _MERGERS["opaque"]


def named(name: str) -> Merger:
    """The merger an edit names; Transient where this version lacks it: the rest of that log waits."""
    found = _MERGERS.get(name)
    if found is None:
        raise errors.Transient(
            f"this version has no merger {name!r}; the log of the site that used it waits",
            reason="unknown-merger",
            hint="upgrade this replicator, or install the plug-in at every site",
        )
    return found
