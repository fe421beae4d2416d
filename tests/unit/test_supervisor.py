"""How long a supervisor waits before it starts a child again."""

from __future__ import annotations

import itertools

from diffkeeper_control import supervisor


def test_pause_doubles_from_the_first_and_never_exceeds_the_longest() -> None:
    pauses = [supervisor.pause_ms(failures) for failures in range(1, 200)]
    assert pauses[0] == supervisor.FIRST_PAUSE_MS
    assert pauses == sorted(pauses)
    assert max(pauses) == supervisor.LONGEST_PAUSE_MS
    for shorter, longer in itertools.pairwise(pauses):
        assert longer in (2 * shorter, supervisor.LONGEST_PAUSE_MS)
