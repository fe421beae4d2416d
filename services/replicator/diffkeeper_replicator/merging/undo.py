"""A file without what one site did to it: its edits played again, with that site's taken back.

Of text the characters the site put in go, and those it took out come again, where Yjs has kept their place; of the
kinds made of registers (keys, lines, elements, sums) the site's writes and deletes are passed over. What others did
since stays, also where it rests on what is taken back. The result is content: who asked for it writes it as an
edit like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pycrdt

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import merger, strategies, yjs_updates
from diffkeeper_replicator.merging.causal import CausalDocument, Origin
from diffkeeper_replicator.merging.text import TextDocument, client_of

# Of the others the parts of sites cannot be told apart once they are merged: databases and whole files.
STRATEGIES = ("text", "json", "lines", "set", "counter")
# No site has this name.
_REPLAY = "~"
_KEPT, _TAKEN_BACK = "kept", "taken back"


class _TextReplay(TextDocument):
    """Keeps what was deleted, and which edits are to be taken back."""

    def __init__(self) -> None:
        super().__init__(_REPLAY)
        self._doc = pycrdt.Doc(client_id=client_of(_REPLAY), skip_gc=True, allow_multithreading=True)
        self._text = self._doc.get(yjs_updates.ROOT, type=pycrdt.Text)
        # One step of undo, however long it took to write.
        self._undo = pycrdt.UndoManager(scopes=[self._text], capture_timeout_millis=1 << 60)
        self._undo.include_origin(_TAKEN_BACK)
        self._as = _KEPT

    def _apply_update(self, update: bytes) -> None:
        with self._doc.transaction(origin=self._as):
            self._doc.apply_update(update)

    def pass_over(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        self._as = _TAKEN_BACK
        try:
            return self.apply(payload, origin)
        finally:
            self._as = _KEPT

    def take_back(self) -> None:
        self._content = None
        while self._undo.can_undo():
            self._undo.undo()


def without(strategy: str, updates: Iterable[tuple[bytes, bool]]) -> bytes:
    """The content that these updates make, in an order in which each stands behind those it rests on, without those
    that are marked. Refused for a strategy of which nothing can be taken back.
    """
    if strategy not in STRATEGIES:
        raise errors.Refused(
            f"of a file merged as {strategy} the edits of one site cannot be taken back; it was left as it is",
            reason="cannot-undo",
            hint="dkctl cat VOLUME--SITE PATH --at WHEN shows it as it was (dkctl log tells when)",
        )
    document = _TextReplay() if strategy == "text" else strategies.strategy(strategy).new(_REPLAY)
    assert isinstance(document, CausalDocument), "all of ours are"
    for update, is_taken_back in updates:
        if is_taken_back:
            document.skip(update)
        else:
            document.merge(update)
    if document.is_waiting:
        raise errors.Refused(
            "an edit of the file rests on one that is not in the logs; nothing was taken back",
            reason="updates-missing",
            hint="look at dkctl status: the log of a site may be held up",
        )
    if isinstance(document, _TextReplay):
        document.take_back()
    return document.content()
