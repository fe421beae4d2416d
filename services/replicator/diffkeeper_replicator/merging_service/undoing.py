"""Takes back what one site did to a file, and leaves what the others did.

It is decided at one site, of the edits that are in the file there, and said as an ordinary edit of that site: it
replicates like any, merges with what others write meanwhile, and can be taken back itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import clocks, errors, shared_ops, trees
from diffkeeper_replicator.merging import text_edits, undo
from diffkeeper_replicator.merging_service import edit_history, kinds
from diffkeeper_replicator.merging_service.documents import BRANCH, NOBODY, writer_of
from diffkeeper_replicator.merging_service.edit_history import EditHistory, PastEdit
from diffkeeper_replicator.merging_service.reports import path_fields
from diffkeeper_replicator.merging_service.site_engine import SiteEngine


@dataclass(frozen=True, slots=True)
class Asked:
    path: bytes
    # Whose edits, and from when on.
    by: str
    since: clocks.Stamp = 0
    dry_run: bool = False


def begin(engine: SiteEngine, asked: Asked) -> EditHistory:
    """What has to be read; Refused where it would be in vain."""
    entry_id = dict(engine.state.tree.paths()).get(asked.path)
    shown = asked.path.decode("utf-8", "backslashreplace")
    if entry_id is None:
        raise errors.NotFound(f"there is no {shown} in this volume", reason="unknown-path")
    entry = engine.state.tree.entries[entry_id]
    kept = engine.store.document(entry.object)
    if entry.kind is not trees.Kind.FILE or kept is None:
        raise errors.Refused(f"{shown} is no file with content", reason="not-a-file")
    strategy = kinds.parse(kept.merger).strategy
    if strategy not in undo.STRATEGIES:
        undo.without(strategy, ())
    return EditHistory(entry.object, sites=engine.state.sites)


def published(engine: SiteEngine) -> shared_ops.Vector:
    """How far the logs reach for certain: what this site has taken in, and of its own what has left it."""
    waiting = engine.store.first_unpublished()
    own = engine.state.number if waiting is None else waiting - 1
    return engine.state.vector | {engine.state.site: own}


def finish(engine: SiteEngine, asked: Asked, history: EditHistory) -> dict[str, Any] | None:
    """Do it. None: the site has edits of the file that were not read."""
    state = engine.state
    for _, packed in engine.store.outbox(1 << 62, blocks=False):
        history.take(shared_ops.decode(packed, state.site))
    found, kept = state.tree.objects.get(history.object), engine.store.document(history.object)
    document = state.document(history.object)
    if found is None or kept is None or document is None:
        raise errors.NotFound("the file is gone", reason="unknown-path")
    if not shared_ops.covers(history.read, found.edited):
        return None
    edits = [edit for edit in sorted(history.edits) if edit.number <= state.vector.get(edit.site, 0)]
    current = [edit for edit in edits if edit.merger == kept.merger and edit.update]
    undone = {edit for edit in current if _is_asked(edit, asked) and not history.is_undone(edit)}
    former = sum(1 for edit in edits if edit.merger != kept.merger and edit.site == asked.by)
    if not undone:
        raise errors.NotFound(
            f"{asked.by} has no such edit of {asked.path.decode('utf-8', 'backslashreplace')}, or none that was not "
            "taken back already"
            + (f"; {former} were made while it was merged as something else" if former else ""),
            reason="no-edits",
            hint="dkctl blame VOLUME PATH tells who wrote what; without --since all edits count",
        )
    strategy = kinds.parse(kept.merger).strategy
    before = document.content()
    if undo.without(strategy, ((edit.update, False) for edit in current)) != before:
        raise errors.Refused(
            "the logs do not hold all that the file was made of; nothing was taken back",
            reason="updates-missing",
            hint="take the version you want out of the history (dkctl cat VOLUME--SITE PATH --at WHEN)",
        )
    content = undo.without(strategy, ((edit.update, edit in undone) for edit in current))
    first, last = (pick(edit.stamp for edit in undone) for pick in (min, max))
    if not asked.dry_run:
        # First that it was done: whoever has the edit knows of that.
        name = edit_history.undone_id(history.object, asked.by)
        state.say(shared_ops.Resolve(name, f"{first:x}-{last:x}"))
        if content != before:
            if kept.base is None:
                kept.base = kept.state  # the directory is behind from here on
                engine.store.put_document(history.object, kept)
            state.overwrite(history.object, content)
        engine.store.commit()
    splices = text_edits.splices(before, content)
    return {
        **path_fields(asked.path),
        "merger": strategy,
        "by": asked.by,
        "edits": len(undone),
        "former_edits": former,
        "first_us": clocks.to_micros(first),
        "last_us": clocks.to_micros(last),
        "bytes_taken_out": sum(edit.end - edit.start for edit in splices),
        "bytes_put_back": sum(len(edit.data) for edit in splices),
        "dry_run": asked.dry_run,
    }


def _is_asked(edit: PastEdit, asked: Asked) -> bool:
    """What a file was when it was first seen is nobody's edit."""
    if edit.site != asked.by or edit.stamp < asked.since:
        return False
    return writer_of(edit.update).partition(BRANCH)[0] not in (NOBODY, "")
