"""Conflicts and blame of a shared volume, for people; and what people decide about conflicts.

A decision is made of ordinary edits, so it replicates like them, and a record that says that it was made.
"""

from __future__ import annotations

import base64
from typing import Any

from diffkeeper.domain import clocks, errors, shared_ops, trees
from diffkeeper_replicator.merging import merger as mergers
from diffkeeper_replicator.merging_service import kinds, large_files
from diffkeeper_replicator.merging_service.documents import BRANCH, NOBODY
from diffkeeper_replicator.merging_service.site_engine import SiteEngine

CHOICES = ("ours", "theirs", "both")


def conflicts(engine: SiteEngine) -> list[dict[str, Any]]:
    """Oldest first; ``resolved`` says how it was dealt with, null: it waits for somebody."""
    shown = []
    for key, fields, choice in engine.store.conflicts():
        path = engine.state.path_of(fields["object"]) or fields["path"]
        shown.append(
            {
                "id": key.hex(),
                **path_fields(path),
                "kind": fields["kind"],
                "automatic": fields["automatic"],
                "site": fields["site"],
                "at_us": fields["at_us"],
                "ours_b64": base64.b64encode(large_files.shown(fields["kind"], fields["ours"])).decode(),
                "theirs_b64": base64.b64encode(large_files.shown(fields["kind"], fields["theirs"])).decode(),
                "resolved": choice or ("merged" if fields["automatic"] else None),
            }
        )
    return sorted(shown, key=lambda row: (row["at_us"], row["id"]))


def resolve(engine: SiteEngine, name: str, choice: str) -> dict[str, Any]:
    """``ours`` or ``theirs``: that version has the file; ``both``: the file and the copy stay as they are."""
    if choice not in CHOICES:
        raise errors.Refused(
            f"{choice!r} is not a choice", reason="bad-request", hint=f"one of {', '.join(CHOICES)}"
        )
    found = {key.hex(): (key, fields) for key, fields, _ in engine.store.conflicts()}
    if name not in found:
        raise errors.NotFound(
            f"there is no conflict {name}", reason="unknown-conflict", hint="dkctl conflicts"
        )
    key, fields = found[name]
    if choice != "both" and not fields["automatic"]:
        _choose(engine, fields, fields[choice])
    engine.store.resolve(key, choice)
    engine.state.say(shared_ops.Resolve(key, choice))
    engine.store.commit()
    return {"id": name, "choice": choice, **path_fields(fields["path"])}


def _choose(engine: SiteEngine, fields: dict[str, Any], shown: bytes) -> None:
    """That version has the file; the copy of the one that lost goes."""
    state, object_id = engine.state, fields["object"]
    kept, document = engine.store.document(object_id), state.document(object_id)
    if kept is None or document is None:
        raise errors.NotFound("the file of this conflict is gone", reason="unknown-path", hint="choose both")
    versions = _versions(document, fields)
    chosen = versions.get(shown)
    if chosen is None:
        raise errors.Refused(
            "this version is not kept whole with the conflict any more; nothing was changed",
            reason="version-not-kept",
            hint="both versions stand in the directory: move the one you want over the other",
        )
    if chosen != document.content():
        if kept.base is None:
            kept.base = kept.state  # the directory is behind from here on
            engine.store.put_document(object_id, kept)
        state.overwrite(object_id, chosen)
    for version in versions.values():
        state.drop_copy(object_id, version)


def _versions(document: mergers.Document, fields: dict[str, Any]) -> dict[bytes, bytes]:
    """Whole versions by what is shown of them."""
    losers: list[mergers.Loser] = getattr(document, "losers", list)()
    whole = [document.content(), *(loser.content for loser in losers)]
    found = {version[: mergers.CONFLICT_SHOWN_BYTES]: version for version in reversed(whole)}
    for side in (fields["ours"], fields["theirs"]):
        if len(side) < mergers.CONFLICT_SHOWN_BYTES:
            found.setdefault(side, side)
    return found


def blame(engine: SiteEngine, path: bytes) -> dict[str, Any]:
    """Who wrote what, line by line or key by key."""
    entry_id = dict(engine.state.tree.paths()).get(path)
    if entry_id is None:
        raise errors.NotFound(
            f"there is no {path.decode('utf-8', 'backslashreplace')} in this volume", reason="unknown-path"
        )
    entry = engine.state.tree.entries[entry_id]
    if entry.kind is not trees.Kind.FILE:
        raise errors.Refused("only files have lines", reason="not-a-file")
    document = engine.state.document(entry.object)
    kept = engine.store.document(entry.object)
    if document is None or kept is None:
        raise errors.Transient("its content has not come yet", reason="not-ready", hint="try again")
    maker = entry.at.site if entry.at is not None else ""
    rows = [
        {
            "where": row.where,
            "site": maker if row.site == NOBODY else row.site.partition(BRANCH)[0],
            "at_us": clocks.to_micros(row.stamp) or None,
        }
        for row in document.blame()
    ]
    return {**path_fields(path), "merger": kinds.parse(kept.merger).strategy, "lines": rows}


def path_fields(path: bytes) -> dict[str, str]:
    """A path for JSON; what is not UTF-8 also as its bytes."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {
            "path": path.decode("utf-8", "backslashreplace"),
            "path_b64": base64.b64encode(path).decode(),
        }
