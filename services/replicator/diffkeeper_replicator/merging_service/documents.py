"""The merger of a kind, what a document begins with, and what an update must be before a merger sees it."""

from __future__ import annotations

from diffkeeper.domain import clocks, errors
from diffkeeper_replicator.merging import causal, merger, strategies, wire
from diffkeeper_replicator.merging_service import kinds

# The document of a file's first content is made as if by this site, so that it is the same wherever the same
# content is seen first.
NOBODY = "-"
NOBODYS_STAMP = 1
# Between a site's name and what tells apart the files it displaced: each is a writer of its own.
BRANCH = "~"


def named(name: str) -> merger.Merger:
    """The merger of the kind an edit names; Transient where this version lacks it: the rest of that log waits."""
    try:
        return strategies.strategy(kinds.parse(name).strategy)
    except errors.Misconfigured as error:
        raise errors.Transient(
            f"this version has no merger {name!r}; the log of the site that used it waits",
            reason="unknown-merger",
            hint="upgrade this replicator, or install the plug-in at every site",
        ) from error


def begun(strategy: str, content: bytes) -> bytes:
    """The update that makes this content of nothing: the same wherever the same content is seen first, if the merger
    is able to.
    """
    return strategies.strategy(strategy).new(NOBODY).edit(content, NOBODYS_STAMP, NOBODY)


def writer_of(update: bytes) -> str:
    """In whose name an edit is; empty: it does not say."""
    message = wire.unpack(update)
    is_one = isinstance(message, tuple) and len(message) == 7 and message[2] == "u"
    return message[3] if is_one and isinstance(message[3], str) else ""


def check_writer(document: merger.Document, update: bytes, site: str, stamp: clocks.Stamp) -> None:
    """Raises Corrupt for an update in the log of ``site`` that speaks for another, or from after its own record."""
    if not isinstance(document, causal.CausalDocument):
        return
    message = wire.unpack(update)
    wire.expect(
        isinstance(message, tuple) and len(message) == 7 and message[2] == "u", "no update of one site"
    )
    writer, written = message[3], message[4]
    wire.expect(isinstance(writer, str) and isinstance(written, int), "origin")
    if writer == NOBODY:
        wire.expect(written == NOBODYS_STAMP and not message[5], "a first content that is not the first")
        return
    if writer.partition(BRANCH)[0] != site:
        raise errors.Corrupt(
            f"the log of {site} holds an edit in the name of {writer}; nothing from there on was taken",
            reason="forged-site",
            hint=f"look at the replicator of {site}",
            site=site,
        )
    wire.expect(written <= stamp, "an edit from after its own record")
