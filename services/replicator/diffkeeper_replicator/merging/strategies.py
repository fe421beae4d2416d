"""The strategies there are: those of DiffKeeper, and those that other distributions bring along.

A plug-in names its ``merger.Merger`` class in the entry point group ``diffkeeper.mergers`` and holds it against
``tests/contracts/test_merger.py``. It cannot take the name of a strategy of ours.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module, metadata

from diffkeeper.domain import errors
from diffkeeper_replicator.merging.merger import Merger

GROUP = "diffkeeper.mergers"

# Imported when first used: SQLite and Yjs are large, and most volumes need neither. In the order in which they
# are asked whether they take a file.
_OURS = {
    "sqlite": ("diffkeeper_replicator.merging.sqlite_rows", "SqliteMerger"),
    "json": ("diffkeeper_replicator.merging.json_maps", "JsonMerger"),
    "lines": ("diffkeeper_replicator.merging.lines", "LinesMerger"),
    "counter": ("diffkeeper_replicator.merging.counters", "CounterMerger"),
    "set": ("diffkeeper_replicator.merging.sets", "SetMerger"),
    "text": ("diffkeeper_replicator.merging.text", "TextMerger"),
    "opaque": ("diffkeeper_replicator.merging.opaque", "OpaqueMerger"),
}
NAMES = tuple(_OURS)
# Not for rules: see there.
_BY_REFERENCE = {"blocks": ("diffkeeper_replicator.merging.blocks", "BlocksMerger")}


def ruled(name: str) -> Merger:
    """One that a rule may name."""
    if name in _BY_REFERENCE:
        raise errors.Misconfigured(
            f"{name} is what too large files are merged as, and cannot be chosen", reason="unknown-strategy"
        )
    return strategy(name)


@cache
def strategy(name: str) -> Merger:
    """Misconfigured when there is none of this name, or it cannot be loaded."""
    if name in _OURS or name in _BY_REFERENCE:
        module, factory = (_OURS | _BY_REFERENCE)[name]
        merger: Merger = getattr(import_module(module), factory)()
        return merger
    plugged = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in plugged:
        near = difflib.get_close_matches(name, [*_OURS, *plugged], 1)
        raise errors.Misconfigured(
            f"there is no merge strategy {name}",
            reason="unknown-strategy",
            hint=f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted([*_OURS, *plugged]))}",
        )
    try:
        found: Merger = plugged[name].load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise errors.Misconfigured(
            f"the merge strategy {name} ({plugged[name].value}) cannot be loaded: {error}",
            reason="bad-strategy",
            hint="install its distribution anew, or take it out of the rules of the volume",
        ) from error
    return found
