"""``diffkeeper.yaml`` at the top of a shared volume: the rules by which its files are merged.

It holds one mapping, ``merge``, of globs to strategies (``rules``) and nothing else. Read event by event, so that
what it could be beside that (aliases, tags, deep nesting, several documents) is refused before it costs anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from diffkeeper.domain import errors
from diffkeeper_replicator.merging.rules import Rules

NAME = b"diffkeeper.yaml"
MAX_BYTES = 64 * 1024
_KEY = "merge"
_HINT = "correct it in the volume at any site; until then files are merged as if it were not there"


def parse(content: bytes) -> Rules:
    """Misconfigured, with what is wrong and where, for anything that is not just such rules."""
    if len(content) > MAX_BYTES:
        raise _bad(f"it has {len(content)} bytes, and at most {MAX_BYTES} are read")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"byte {error.start} is not UTF-8") from error
    try:
        mapping = _mapping(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise _bad(" ".join(str(error).split())) from error
    try:
        return Rules.of(mapping)
    except errors.Misconfigured as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise _bad(error.message + hint) from error


def _mapping(events: Iterator[Any]) -> dict[str, str]:
    """The rules; empty for an empty file."""
    _expect(next(events), yaml.StreamStartEvent)
    event = next(events)
    if isinstance(event, yaml.StreamEndEvent):
        return {}
    _expect(event, yaml.DocumentStartEvent)
    found: dict[str, str] = {}
    event = next(events)
    if not _is_nothing(event):
        _expect(event, yaml.MappingStartEvent)
        found = _top(events)
    _expect(next(events), yaml.DocumentEndEvent)
    _expect(next(events), yaml.StreamEndEvent)
    return found


def _top(events: Iterator[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    is_there = False
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _text(event)
        if key != _KEY:
            raise _bad(f"line {_line(event)}: there is no key {key!r} here, only {_KEY!r}")
        if is_there:
            raise _bad(f"line {_line(event)}: {_KEY!r} stands twice")
        is_there = True
        event = next(events)
        if not _is_nothing(event):
            _expect(event, yaml.MappingStartEvent)
            found = _rules(events)
    return found


def _rules(events: Iterator[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        glob = _text(event)
        if glob in found:
            raise _bad(f"line {_line(event)}: the glob {glob!r} stands twice")
        found[glob] = _text(next(events))
    return found


def _is_nothing(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and not event.value and event.style is None


def _text(event: Any) -> str:
    _expect(event, yaml.ScalarEvent)
    return str(event.value)


def _expect(event: Any, wanted: type[Any]) -> None:
    if not isinstance(event, wanted) or getattr(event, "anchor", None) or getattr(event, "tag", None):
        raise _bad(f"line {_line(event)}: it is to be one mapping, {_KEY}, of globs to strategies")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _bad(why: str) -> errors.Misconfigured:
    return errors.Misconfigured(
        f"the rules in {NAME.decode()} are not in force: {why}", reason="bad-merge-rules", hint=_HINT
    )
