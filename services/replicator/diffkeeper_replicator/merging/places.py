"""Names for the elements of a list that keep their order while several sites put elements in.

A place is a row of steps (stamp, site, number). The first step says when the element was put at the end of the
list; each further one goes behind the element that the steps before it name, with the stamp negative, so that
of two put behind the same element the later comes first. Sorting places sorts the list; elements that one edit
puts in stay together.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from diffkeeper.domain import clocks
from diffkeeper_replicator.merging import wire
from diffkeeper_replicator.merging.causal import Origin

Place = tuple[tuple[int, str, int], ...]

# Before everything.
START: Place = ((0, "", 0),)
# Elements put behind elements put behind elements: beyond this depth one goes to the end of the list.
DEPTH_MAX = 64
_NUMBER_MAX = 1 << 40


def put(before: Place, at_end: bool, origin: Origin, number: int) -> Place:
    """Where the ``number``-th new element of an edit goes, behind ``before``."""
    if at_end or len(before) >= DEPTH_MAX:
        return ((origin.stamp, origin.site, number),)
    return (*before, (-origin.stamp, origin.site, number))


def is_place(value: Any) -> TypeGuard[Place]:
    if not isinstance(value, tuple) or not 0 < len(value) <= DEPTH_MAX:
        return False
    return all(isinstance(step, tuple) and len(step) == 3 for step in value) and all(
        type(stamp) is int
        and abs(stamp) <= clocks.STAMP_MAX
        and isinstance(site, str)
        and len(site) <= wire.SITE_MAX_CHARS
        and type(number) is int
        and 0 <= number < _NUMBER_MAX
        for stamp, site, number in value
    )
