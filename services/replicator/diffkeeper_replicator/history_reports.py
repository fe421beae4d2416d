"""What of a volume's history is kept, what it costs, and what another policy would free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from diffkeeper.domain import errors, retention
from diffkeeper_replicator import archives, checkpoints
from diffkeeper_replicator.pruning import Pruner
from diffkeeper_replicator.volume_history import VolumeHistory


def report(history: VolumeHistory, now_us: int, what_if: retention.Policy | None) -> dict[str, Any]:
    history.grow()
    first, last = history.first(), history.last()
    known, kept = history.index.counts()
    costs = _costs(history)
    told: dict[str, Any] = {
        "volume": history.volume,
        "first": _point(first),
        "last": _point(last),
        "points": {"kept": kept, "thinned": known - kept},
        "bytes": costs,
        "checkpoints": len(checkpoints.found(history.checkpoints)),
        "archives": len(archives.found(history.builder.archives)),
        "policy": msgspec.to_builtins(history.policy),
        "policy_is_default": not history.has_own_policy,
        "tags": history.tags,
        "branches": [branch.name for branch in history.branches.all()],
        "damaged": [
            *(
                {"what": f"checkpoint {position}", "why": why}
                for position, why in history.builder.damaged.items()
            ),
            *({"what": name, "why": why} for name, why in history.damaged_archives.items()),
        ],
        "chunks": {"healed": history.store.healed, "lost": history.store.lost},
    }
    if what_if is not None:
        told["what_if"] = _what_if(history, retention.check(what_if), now_us, costs)
    return told


def _what_if(
    history: VolumeHistory, policy: retention.Policy, now_us: int, costs: dict[str, int]
) -> dict[str, Any]:
    """An estimate: points are taken to cost alike."""
    stay, points = Pruner(history).would_keep(policy, now_us)
    share = 1 - stay / points if points else 0.0
    return {
        "policy": msgspec.to_builtins(policy),
        "kept": stay,
        "thinned": points - stay,
        "frees_bytes": int(share * (costs["archives"] + costs["journal"])),
    }


def _costs(history: VolumeHistory) -> dict[str, int]:
    hashes: set[bytes] = set()
    for position in checkpoints.found(history.checkpoints):
        try:
            hashes.update(checkpoints.hashes(checkpoints.path_of(history.checkpoints, position)))
        except (errors.Corrupt, FileNotFoundError):
            continue  # told as damaged when it is wanted, or gone meanwhile
    return {
        "journal": history.journal.size_bytes(),
        "archives": _size(history.builder.archives),
        "checkpoints": _size(history.checkpoints),
        "chunks": history.store.stored(hashes),
        "index": sum(path.stat().st_size for path in history.folder.glob("index.db*")),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _point(point: Any) -> dict[str, Any] | None:
    return None if point is None else {"position": str(point.position), "at_us": point.at_us}
