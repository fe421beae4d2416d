"""Which strategy merges a file: the volume's rules first, then its name and bytes.

The rules are the ``merge`` mapping in the volume's ``diffkeeper.yaml`` (``rules_file``), glob to strategy, the first
that fits counting::

    merge:
      "*.md": text
      "settings/**/*.json": json
      "visits": counter

A glob without a slash is held against the last part of a path, one with a slash against the whole; ``*`` and
``?`` stay within one part, ``**`` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import globs, strategies

MIB = 1024 * 1024
# What a strategy can take; ``opaque`` takes all, and beyond its own limit a file is handled outside documents.
LIMITS = {
    "sqlite": 64 * MIB,
    "json": 4 * MIB,
    "lines": 64 * MIB,
    "counter": 4096,
    "set": 32 * MIB,
    "text": 32 * MIB,
}
_PLUGGED_LIMIT = 64 * MIB
_RULES_MAX = 1000


@dataclass(frozen=True)
class Choice:
    """``why`` says so when a file is not merged as its rule wants it."""

    strategy: str
    why: str | None = None


@dataclass(frozen=True)
class Rules:
    rules: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, mapping: Mapping[str, str]) -> Rules:
        """Misconfigured for a strategy that is not known, and for a glob that is none."""
        if len(mapping) > _RULES_MAX:
            raise errors.Misconfigured(
                f"{len(mapping)} merge rules are too many (at most {_RULES_MAX})", reason="too-many-rules"
            )
        for glob, name in mapping.items():
            if not glob:
                raise errors.Misconfigured("a merge rule has an empty glob", reason="bad-glob")
            if len(glob) > globs.GLOB_MAX_CHARS:
                raise errors.Misconfigured(
                    f"the glob {glob[:40]!r}... is longer than {globs.GLOB_MAX_CHARS} characters",
                    reason="bad-glob",
                )
            strategies.ruled(name)
        return cls(tuple(mapping.items()))

    def wanted(self, path: str) -> str | None:
        """The strategy a rule names for the path."""
        part = path.rsplit("/", 1)[-1]
        for glob, name in self.rules:
            if _glob(glob).fits(path if "/" in glob else part):
                return name
        return None

    def choose(self, path: str, size: int, read: Callable[[], bytes]) -> Choice:
        """``read`` gives the content and is asked only for a file that some strategy could take."""
        name = self.wanted(path)
        if name is None:
            return _by_itself(path, size, read)
        if name == "opaque":
            return Choice(name)
        limit = LIMITS.get(name, _PLUGGED_LIMIT)
        if size > limit:
            return Choice("opaque", f"{size} bytes are too many to merge as {name} (at most {limit})")
        if name in ("text", "json") and not _is_utf8(read()):
            return Choice("opaque", f"the file is not UTF-8 and cannot be merged as {name}")
        return Choice(name)


def _by_itself(path: str, size: int, read: Callable[[], bytes]) -> Choice:
    if size > max(LIMITS.values()):
        return Choice("opaque")
    content = read()
    for name in strategies.NAMES:
        if size <= LIMITS.get(name, size) and strategies.strategy(name).accepts(path, content):
            return Choice(name)
    return Choice("opaque")


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def _glob(glob: str) -> globs.Glob:
    return globs.Glob(glob.removeprefix("/"))
