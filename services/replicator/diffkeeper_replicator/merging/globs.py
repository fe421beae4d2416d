"""Globs held against paths in time that grows with the path alone: whoever may write a rule must not be able to hold
up a site with it, as one of many stars would under backtracking.

``*`` and ``?`` stay within one part of a path, ``**`` does not, ``**/`` may also be nothing at all.
"""

from __future__ import annotations

import re
from collections import defaultdict

# Longer ones are refused where rules are read.
GLOB_MAX_CHARS = 255
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|.", re.DOTALL)


class Glob:
    """The states of the glob are bits of a number; all that may hold are stepped at once by each character."""

    def __init__(self, glob: str) -> None:
        self._by_char: dict[str, int] = defaultdict(int)
        self._any = self._not_slash = self._stay = self._stay_in_part = 0
        self._skip = self._skip_two = self._slash_two = 0
        bit = 1
        for token in _TOKENS.findall(glob):
            if token == "**/":
                self._skip_two |= bit
                self._slash_two |= bit
                self._any |= bit
                bit <<= 1
                self._stay |= bit
                self._by_char["/"] |= bit
            elif token == "**":
                self._skip |= bit
                self._stay |= bit
            elif token == "*":
                self._skip |= bit
                self._stay_in_part |= bit
            elif token == "?":
                self._not_slash |= bit
            else:
                self._by_char[token] |= bit
            bit <<= 1
        self._end = bit

    def fits(self, path: str) -> bool:
        states = self._skipped(1)
        for char in path:
            on = states & (self._any | self._by_char.get(char, 0))
            stay = states & self._stay
            if char == "/":
                on |= (states & self._slash_two) << 1
            else:
                on |= states & self._not_slash
                stay |= states & self._stay_in_part
            states = self._skipped(stay | on << 1)
            if not states:
                return False
        return bool(states & self._end)

    def _skipped(self, states: int) -> int:
        while True:
            more = states | (states & self._skip) << 1 | (states & self._skip_two) << 2
            if more == states:
                return states
            states = more
