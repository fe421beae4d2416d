"""What could be lost now without loss of data, in figures and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from diffkeeper.domain import stripes
from diffkeeper_repair import planner
from diffkeeper_repair.catalogue import Entry
from diffkeeper_repair.planner import NodeState

if TYPE_CHECKING:
    from diffkeeper_repair.service import RepairService

MOST_LOST = 100


def nodes(service: RepairService) -> list[dict[str, Any]]:
    rows = []
    for node in service.fleet.nodes.values():
        held = service.catalogue.held(node.name)
        since = service.memory.away_since(node.name)
        rows.append(
            {
                "node": node.name,
                "domain": node.node.domain,
                "state": service.fleet.state(node).value,
                "full": node.full,
                "shards": sum(key.index >= 0 for key in held),
                "stored_bytes": node.stored_bytes,
                "damaged": sum(damage.node == node.name for damage in service.book.open),
                "away_since_us": since,
                "error": node.trouble.message if node.trouble is not None else None,
            }
        )
    return rows


def report(service: RepairService) -> dict[str, Any]:
    """The answer of ``GET /v1/health``."""
    found = [
        (entry, service.rebuilder.plan(entry, patient=True)) for entry in service.catalogue.current().values()
    ]
    by_volume: dict[str, list[tuple[Entry, planner.Plan]]] = {}
    for entry, plan in found:
        by_volume.setdefault(entry.stripe.volume, []).append((entry, plan))
    rows = [_volume(service, volume, by_volume.get(volume, [])) for volume in _volumes(service, by_volume)]
    least = min((row["spare"] for row in rows if row["spare"] is not None), default=None)
    lost = [row for row in rows if row["lost"]]
    return {
        "ok": not lost
        and not service.book.open
        and all(row["spare_full"] for row in rows)
        and _all_up(service),
        "geometry": str(service.geometry),
        "words": words(service),
        "spare": least,
        "verdict": _verdict(service, least, bool(lost)),
        "volumes": rows,
        "damages": [msgspec.to_builtins(damage) for damage in service.book.open],
        "at_us": service.now_us(),
    }


def words(service: RepairService) -> str:
    """What the geometry survives, and whether a whole failure domain is among it."""
    nodes_known = [node.node for node in service.fleet.nodes.values()]
    placed = stripes.place(b"", nodes_known, service.geometry)
    domains = {node.domain for node in nodes_known}
    text = service.geometry.words()
    if len(domains) < 2:
        return text
    whole = stripes.survives_a_domain(placed, nodes_known, service.geometry)
    return f"{text}; {'also' if whole else 'not'} the loss of a whole site"


def _volumes(service: RepairService, by_volume: dict[str, Any]) -> list[str]:
    return sorted({*by_volume, *(origin.volume for origin in service.sealers.streams)})


def _volume(service: RepairService, volume: str, found: list[tuple[Entry, planner.Plan]]) -> dict[str, Any]:
    spares = [(planner.spare(entry.stripe.geometry, plan), entry) for entry, plan in found]
    strange = service.catalogue.strange
    counted = [spare for spare, entry in spares if entry.stripe not in strange]
    streams = [one for origin, one in service.sealers.streams.items() if origin.volume == volume]
    lost = [_lost(entry, entry.stripe in strange) for spare, entry in spares if spare < 0]
    return {
        "volume": volume,
        "geometry": str(service.geometry_of(volume)),
        "segments": len(found),
        "bytes": sum(entry.manifest.segment_bytes for entry, _ in found if entry.manifest is not None),
        # How many more nodes can be lost at once, whichever they are.
        "spare": max(0, min(counted)) if counted else None,
        "spare_full": all(spare == entry.stripe.geometry.parity for spare, entry in spares),
        "lost": lost[:MOST_LOST],
        "lost_segments": len(lost),
        "rebuilding": sum(not plan.is_idle for _, plan in found),
        "waiting": sum(len(plan.waiting) for _, plan in found),
        "homeless": sum(len(plan.homeless) for _, plan in found),
        # Segments that stand in another geometry than the one wanted.
        "recoding": service.recoder.left(volume),
        "streams": [
            {
                "origin": one.origin.site,
                "sealed": one.sealed,
                "seen": one.seen,
                "waiting_bytes": one.waiting_bytes,
                "trouble": one.trouble.message if one.trouble is not None else None,
            }
            for one in streams
        ],
    }


def _lost(entry: Entry, is_strange: bool) -> dict[str, Any]:
    """A segment that what answers cannot give back: which positions and times it stands for."""
    manifest = entry.manifest
    if manifest is None:
        return {
            "segment": entry.stripe.segment,
            "words": "an unfinished segment, whose frames are in their streams",
        }
    span = manifest.span
    return {
        "segment": entry.stripe.segment,
        "origin": span.origin,
        "first": str(span.first),
        "last": str(span.last),
        "first_us": span.first_us,
        "last_us": span.last_us,
        "words": span.words() + ("; the streams hold other frames there" if is_strange else ""),
    }


def _all_up(service: RepairService) -> bool:
    return all(service.fleet.state(node) is NodeState.UP for node in service.fleet.nodes.values())


def _verdict(service: RepairService, least: int | None, is_lost: bool) -> str:
    away = sorted(node.name for node in service.fleet.nodes.values() if not node.answers)
    absent = f" ({', '.join(away)} away)" if away else ""
    if is_lost:
        return f"Some segments cannot be read from the nodes that answer{absent}; they are named below."
    if least is None:
        return f"Nothing is sealed yet{absent}."
    if least == 0:
        return f"Everything can be read, and no further node may be lost{absent}."
    plural = "s" if least > 1 else ""
    return f"Everything survives the loss of any {least} more storage node{plural}{absent}."
