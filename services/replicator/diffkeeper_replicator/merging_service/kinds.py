"""As what a file is merged: a strategy, and how often that was changed.

A file has its kind from the site that saw it first. Another one is a new document of a higher *generation*, begun
with what the file was at that moment; its *mark* is the digest of that, so that sites which change it alike at the
same moment have one document. Of two kinds the higher generation counts, and of one generation the smaller name:
all sites that have heard of both agree.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blake3 import blake3

from diffkeeper.domain import shared_ops

MARK_DIGITS = 12
_NAME = re.compile(rf"(.+)@([1-9][0-9]{{0,8}})\.([0-9a-f]{{{MARK_DIGITS}}})")
_GENERATION_MAX = 999_999_999


class Kind(NamedTuple):
    strategy: str
    generation: int = 0
    mark: str = ""

    def __str__(self) -> str:
        """As edits name it. One of generation 0 is just the strategy."""
        return f"{self.strategy}@{self.generation}.{self.mark}" if self.generation else self.strategy

    def beats(self, other: Kind) -> bool:
        return (-self.generation, self.strategy, self.mark) < (-other.generation, other.strategy, other.mark)

    def changed(self, strategy: str, content: bytes) -> Kind | None:
        """The kind of a document begun with ``content`` after this one; None where it cannot be named."""
        made = Kind(strategy, self.generation + 1, blake3(content).hexdigest()[:MARK_DIGITS])
        fits = made.generation <= _GENERATION_MAX and len(str(made)) <= shared_ops.MERGER_NAME_MAX
        return made if fits else None


def parse(name: str) -> Kind:
    """The kind an edit names, whatever it says."""
    found = _NAME.fullmatch(name)
    return Kind(name) if found is None else Kind(found[1], int(found[2]), found[3])
