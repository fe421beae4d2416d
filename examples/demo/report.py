"""What the demo prints at its end, and whether all of it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from examples.demo import checker

MAX_NAMED = 10
EXACT = "exact"


@dataclass(slots=True)
class Story:
    """What was measured on the way."""

    probe: str = "unknown"
    fidelity: str = "unknown"
    acknowledged_before_kill: int = 0
    lag_before_kill: str = "unknown"
    kill_to_first_order_ms: float | None = None
    # As the failover's operation reports them.
    timings_ms: dict[str, float] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    judgement: checker.Judgement | None = None

    def unproven(self) -> list[str]:
        """What of the log, the replica and (with the exact probe) the source was not found to agree."""
        found = self.verification
        if found is None or not found["replicas"]:
            return ["no replica was compared with the log"]
        parts = {
            **{f"chain at {one['site']}": one for one in found["chains"]},
            **{f"replica at {one['site']}": one for one in found["replicas"]},
        }
        if self.fidelity == EXACT:
            parts["source"] = found["source"]
        return [_difference(name, part) for name, part in parts.items() if part["ok"] is not True]

    def inexact(self) -> str | None:
        """How the source differs from the log where the portable probe cannot see it, such as through mmap."""
        source = (self.verification or {}).get("source") or {"ok": None}
        return None if self.fidelity == EXACT or source["ok"] is True else _difference("source", source)

    @property
    def ok(self) -> bool:
        return (
            self.judgement is not None
            and self.judgement.ok
            and self.verification is not None
            and not self.unproven()
            and self.kill_to_first_order_ms is not None
            and self.acknowledged_before_kill > 0
        )


def lines(story: Story) -> list[str]:
    judgement = story.judgement
    assert judgement is not None, "the report comes after the check"
    verification = story.verification or {"ok": False, "verdict": "not verified"}
    out = [
        "",
        _line("captured by", f"probe {story.probe}, fidelity {story.fidelity}"),
        _line(
            "acknowledged",
            f"{judgement.acknowledged} orders, {story.acknowledged_before_kill} of them before the kill",
        ),
        _line(
            "found",
            f"{judgement.found}, each exactly once and as it was sent" if judgement.ok else judgement.found,
        ),
        _line("lost", len(judgement.lost)),
        _line(
            "unknown to the client", f"{judgement.unknown}, of which {judgement.unknown_but_there} are there"
        ),
        _line("PRAGMA integrity_check", judgement.integrity),
        _line("dkctl verify", verification["verdict"]),
        _line("lag before the kill", story.lag_before_kill),
    ]
    for name in ("detect", "fence", "promise", "catch_up", "promote", "start"):
        if story.timings_ms.get(name) is not None:
            out.append(_line(f"time to {name.replace('_', ' ')}", f"{story.timings_ms[name]:.1f} ms"))
    if story.kill_to_first_order_ms is not None:
        out.append(_line("kill to first order at west", f"{story.kill_to_first_order_ms:.0f} ms"))
    inexact = story.inexact()
    if inexact is not None:
        out.append(_line("by fidelity scan", inexact))
    out += [_line("WRONG", text) for text in [*_wrongs(judgement), *story.unproven()]]
    out += ["", "All of it holds." if story.ok else "NOT all of it holds."]
    return out


def _wrongs(judgement: checker.Judgement) -> list[str]:
    kinds = {
        "lost": judgement.lost,
        "there more than once": judgement.duplicated,
        "not as it was sent": judgement.altered,
        "before an order acknowledged earlier": judgement.misplaced,
        "refused, and there": judgement.refused_but_there,
        "there, and never sent": judgement.invented,
    }
    return [
        f"{len(names)} {kind}: {', '.join(names[:MAX_NAMED])}{' ...' if len(names) > MAX_NAMED else ''}"
        for kind, names in kinds.items()
        if names
    ]


def _difference(name: str, part: dict[str, Any]) -> str:
    paths = [difference["path"] for difference in part.get("differences") or []]
    return f"{name}: {part.get('error') or part.get('compared')}" + (
        f"; differs: {', '.join(paths)}" if paths else ""
    )


def _line(name: str, value: object) -> str:
    return f"  {name:<28} {value}"
