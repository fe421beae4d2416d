"""A capture's status as ARCHITECTURE.md gives it: everything a person or control asks about one volume."""

from __future__ import annotations

import time
from typing import Any

from diffkeeper.domain import positions
from diffkeeper_capture.gate_socket import Program
from diffkeeper_capture.volume_capture import VolumeCapture

# Calls listed one by one; the gate's own count says how many there are.
WAITING_SHOWN = 20


def of(capture: VolumeCapture) -> dict[str, Any]:
    now_us = time.time_ns() // 1000
    durability, framer, order = capture.durability, capture.framer, capture.order
    captured = framer.tip.position
    trouble = capture.shipper.trouble or capture.publisher.trouble
    return {
        "volume": order.volume,
        "path": str(order.path),
        "epoch": order.epoch,
        "durability": order.durability.word,
        "effective_durability": capture.gate.effective.word,
        "policy": order.policy.value,
        "probe": "bpf" if capture.is_exact else "watch",
        "fidelity": "exact" if capture.is_exact and not capture.gap_open else "scan",
        "state": capture.state,
        "error": None if capture.error is None else capture.error.to_dict(),
        "trouble": None if trouble is None else trouble.to_dict(),
        "base": capture.progress,
        "captured": str(captured),
        "spooled": str(durability.spooled),
        "stored": str(durability.stored),
        "confirmed": {site: str(position) for site, position in sorted(durability.confirmed.items())},
        "lag": _lag(capture, captured, now_us),
        "replicas": {
            site: _behind(capture, position, captured, now_us)
            for site, position in sorted(durability.by_site().items())
        },
        "spool": {
            "bytes": capture.spool.bytes_kept,
            "max_bytes": capture.spool.max_bytes,
            "held_once": capture.shipper.is_held_once,
        },
        "alarms": [alarm.to_dict() for alarm in capture.stalls.alarms],
        "barriers": {"total": capture.gate.total, "waiting": capture.gate.waiting()[:WAITING_SHOWN]},
        "gaps": {"open": capture.gap_open, "total": framer.gaps, "last": capture.last_gap},
        "lost_records": capture.lost_records,
        "lease": None if capture.lease is None else capture.lease.status(),
        "program": None if capture.program is None else _program(capture.program),
        "at_us": now_us,
    }


def _lag(capture: VolumeCapture, captured: positions.Position, now_us: int) -> dict[str, Any]:
    """What the loss of this site (with no other known: of this node) would cost now."""
    lag = _behind(capture, capture.durability.safe(), captured, now_us)
    return {key: lag[key] for key in ("frames", "bytes", "ms")}


def _behind(
    capture: VolumeCapture, safe: positions.Position, captured: positions.Position, now_us: int
) -> dict[str, Any]:
    """What is captured here and lies beyond a position, which another holder has."""
    pending = capture.framer.pending
    oldest_us = capture.durability.oldest_beyond_us(safe)
    ages = [now_us - oldest_us] if oldest_us is not None else []
    ages += [capture.framer.oldest_untaken_age(), capture.unread_age_us]
    same = captured.epoch == safe.epoch or not safe.epoch
    return {
        "position": str(safe),
        "frames": (captured.sequence - safe.sequence if same else captured.sequence) + (1 if pending else 0),
        "bytes": capture.spool.bytes_after(safe) + capture.framer.pending_bytes,
        "ms": max(0, max(ages, default=0)) // 1000,
    }


def _program(program: Program) -> dict[str, Any]:
    return {"pid": program.pid, "running": program.running, "exit_code": program.exit_code}
