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
        "barriers": {"total": capture.gate.total, "waiting": capture.gate.waiting()[:WAITING_SHOWN]},
        "gaps": {"open": capture.gap_open, "total": framer.gaps, "last": capture.last_gap},
        "lost_records": capture.lost_records,
        "lease": None if capture.lease is None else capture.lease.status(),
        "program": None if capture.program is None else _program(capture.program),
        "at_us": now_us,
    }


def _lag(capture: VolumeCapture, captured: positions.Position, now_us: int) -> dict[str, int]:
    """What the loss of this site (with no other known: of this node) would cost now."""
    safe = capture.durability.safe()
    pending = capture.framer.pending
    oldest_us = capture.durability.oldest_unsafe_us()
    ages = [now_us - oldest_us] if oldest_us is not None else []
    ages += [capture.framer.oldest_pending_age()] if pending else []
    return {
        "frames": captured.sequence - safe.sequence + (1 if pending else 0),
        "bytes": capture.spool.bytes_after(safe) + capture.framer.pending_bytes,
        "ms": max(0, max(ages, default=0)) // 1000,
    }


def _program(program: Program) -> dict[str, Any]:
    return {"pid": program.pid, "running": program.running, "exit_code": program.exit_code}
