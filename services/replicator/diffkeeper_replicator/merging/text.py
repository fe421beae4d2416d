"""Text by character: a ``pycrdt`` Text, so that concurrent typing merges exactly as Yjs merges it.

Each site writes under a client number of its own, made of its name, so an update can be held against who sent
it, and blame needs no table. Updates are read by ``yjs_updates`` before ``pycrdt`` sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import pycrdt

from diffkeeper.domain import clocks, errors
from diffkeeper_replicator.merging import marks, merger, text_edits, wire, yjs_updates
from diffkeeper_replicator.merging.causal import CausalDocument, Origin, Vector

CONTENT_MAX_BYTES = 32 * 1024 * 1024
# Finding the writer of a piece takes a walk over the pieces before it.
BLAME_MAX_PIECES = 30_000


@cache
def client_of(site: str) -> int:
    """The Yjs client number of a site: 53 bits of a hash, never 0."""
    digest = hashlib.blake2b(site.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % yjs_updates.CLIENT_MAX + 1


class TextDocument(CausalDocument):
    strategy = "text"
    content_max_bytes = CONTENT_MAX_BYTES

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self._doc: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client_of(site), allow_multithreading=True)
        self._text = self._doc.get(yjs_updates.ROOT, type=pycrdt.Text)
        self._marks = marks.Marks()
        self._content: bytes | None = b""
        self._latest: dict[str, bytes] = {}
        self._told: dict[str, clocks.Stamp] = {}
        # What was checked last is what is applied next, unless it has to wait.
        self._read: tuple[bytes, yjs_updates.Contents] = (b"", yjs_updates.Contents())

    def content(self) -> bytes:
        if self._content is None:
            self._content = str(self._text).encode()
        return self._content

    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        _refuse_unless_utf8(content)
        edits = text_edits.splices(self.content(), content, changed)
        if not edits:
            return None
        update = self._spliced(edits)
        self._content = content
        self._mark(origin, yjs_updates.read(update))
        return update

    def _spliced(self, edits: list[text_edits.Splice]) -> bytes:
        found: list[bytes] = []
        # Not get_update(): that holds every delete the document ever saw.
        subscription = self._doc.observe(lambda event: found.append(event.update))
        try:
            with self._doc.transaction():
                for edit in reversed(edits):
                    if edit.end > edit.start:
                        del self._text[edit.start : edit.end]
                    if edit.data:
                        self._text.insert(edit.start, edit.data.decode())
        finally:
            self._doc.unobserve(subscription)
        return found[0]

    def _mark(self, origin: Origin, contents: yjs_updates.Contents) -> None:
        end = contents.end(client_of(origin.site))
        if end:
            self._marks.add(origin.site, end, origin.stamp)
        texts = [text for runs in contents.runs.values() for _, _, text in runs if text]
        self._latest[origin.site] = b" ".join(texts)[: merger.CONFLICT_SHOWN_BYTES]

    def check(self, payload: Any) -> None:
        wire.expect(isinstance(payload, bytes), "text")
        self._read = (payload, yjs_updates.read(payload))

    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        contents = self._read[1] if self._read[0] is payload else yjs_updates.read(payload)
        client = client_of(origin.site)
        wire.expect(set(contents.runs) <= {client}, "text of another site")
        if client in contents.runs:
            wire.expect(contents.runs[client][0][0] == self._marks.end(origin.site), "a hole in the text")
        known = {client_of(site): self._marks.end(site) for site in self._marks.sites()}
        known[client] = contents.end(client) or known.get(client, 0)
        self._expect_known(contents, known)
        self._feed(payload)
        self._mark(origin, contents)
        return self._told_once(origin)

    @staticmethod
    def _expect_known(contents: yjs_updates.Contents, known: dict[int, int]) -> None:
        for client, clock in contents.needed.items():
            wire.expect(clock < known.get(client, 0), "text that rests on text nobody wrote")

    def _feed(self, update: bytes) -> None:
        self._content = None
        try:
            self._apply_update(update)
        except (ValueError, RuntimeError) as error:
            raise wire.damaged("a text update does not fit") from error

    def _apply_update(self, update: bytes) -> None:
        self._doc.apply_update(update)

    def _told_once(self, origin: Origin) -> list[merger.Conflict]:
        """One word for a row of concurrent edits, not one for each key pressed."""
        saw = origin.saw
        unseen = [
            (stamp, site)
            for site, stamp in self.seen.items()
            if stamp > saw.get(site, 0) and site != origin.site
        ]
        if not unseen:
            return []
        stamp, site = max(unseen)
        if self._told.get(origin.site, 0) >= stamp:
            return []
        self._told[origin.site] = stamp
        ours, theirs = self._latest.get(site, b""), self._latest[origin.site]
        return [merger.Conflict("text", ours, theirs, origin.site, origin.stamp, automatic=True)]

    def dump(self) -> Any:
        return [self._doc.get_update(), self._marks.dump()]

    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        wire.expect(isinstance(dumped, tuple) and len(dumped) == 2, "text")
        update, marked = dumped
        wire.expect(isinstance(update, bytes), "text")
        other = marks.load(marked)
        contents = yjs_updates.read(update)
        ends = {client_of(site): other.end(site) for site in other.sites()}
        wire.expect({client: contents.end(client) for client in contents.runs} == ends, "text without a site")
        wire.expect(all(runs[0][0] == 0 for runs in contents.runs.values()), "a hole in the text")
        self._expect_known(contents, ends)
        concurrent = any(stamp > theirs.get(site, 0) for site, stamp in self.seen.items())
        news = [site for site, stamp in theirs.items() if stamp > self.seen.get(site, 0)]
        self._feed(update)
        self._marks.join(other)
        if not (concurrent and news):
            return []
        site = max(news, key=lambda one: (theirs[one], one))
        return [merger.Conflict("text", b"", b"", site, theirs[site], automatic=True)]

    def adopt(self, dumped: Any, seen: Vector) -> None:
        """The dump of this site's own, whole by its checksum: what ``join`` looks for need not be sought."""
        wire.expect(isinstance(dumped, tuple) and len(dumped) == 2 and isinstance(dumped[0], bytes), "text")
        self._marks = marks.load(dumped[1])
        self._feed(dumped[0])

    def compact(self) -> None:
        """Yjs drops deleted characters by itself and joins what was typed in a row."""
        self._marks.fold()

    def blame(self) -> list[merger.Blame]:
        """The latest writer of each line."""
        writers: dict[int, merger.Blame] = {}
        content = self.content()
        line = 1
        for start, end, site, stamp in self._pieces(content):
            breaks = content.count(b"\n", start, end)
            ended = content[end - 1 : end] == b"\n"
            for number in range(line, line + breaks + (not ended)):
                if number not in writers or writers[number].stamp < stamp:
                    writers[number] = merger.Blame(str(number), site, stamp)
            line += breaks
        return [writers[number] for number in sorted(writers)]

    def _pieces(self, content: bytes) -> list[tuple[int, int, str, clocks.Stamp]]:
        """(start, end, site, stamp) of each run that was written at once, in the order of the text."""
        runs = yjs_updates.read(self._doc.get_update()).runs
        count = sum(1 for one in runs.values() for _, _, text in one if text)
        if count > BLAME_MAX_PIECES:
            raise errors.Refused(
                f"the text consists of {count} pieces; whose they are takes too long to find",
                reason="too-many-pieces",
                hint="look at the history of the file instead (dkctl log)",
            )
        sites = {client_of(site): site for site in self._marks.sites()}
        starts = {client: {clock: text for clock, _, text in one if text} for client, one in runs.items()}
        found = []
        at = 0
        while at < len(content):
            index = self._text.sticky_index(at, pycrdt.Assoc.AFTER).to_json()["item"]
            text = starts[index["client"]][index["clock"]]
            site = sites[index["client"]]
            found.append((at, at + len(text), site, self._marks.stamp(site, index["clock"])))
            at += len(text)
        return found


def _refuse_unless_utf8(content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise errors.Refused(
            f"byte {error.start} is not UTF-8; the file cannot be merged as text and was left as it is",
            reason="not-utf8",
            hint="it is kept as a whole from now on (strategy opaque), or correct its encoding",
            at=error.start,
        ) from error


class TextMerger:
    name = "text"

    def accepts(self, path: str, content: bytes) -> bool:
        if len(content) > CONTENT_MAX_BYTES or b"\0" in content:
            return False
        try:
            content.decode()
        except UnicodeDecodeError:
            return False
        return True

    def new(self, site: str) -> TextDocument:
        return TextDocument(site)

    def load(self, state: bytes, site: str) -> TextDocument:
        document = TextDocument(site)
        document.resume(state)
        return document
