"""What the run wrapper and the agent say to each other on ``gate.sock``: JSON in SOCK_SEQPACKET packets.

The wrapper begins with ``{"gate": VOLUME, "pid": PID, "wrapper": PID, "gated": BOOL, "root": PATH or null,
"seen_at": PATH or null, "stop_signal": NAME,
"hard_limit": BOOL}`` (the directory its caller takes the volume for; where its program sees
it; by which signal it is asked to end; whether it is stopped while the probe's ring is more than half full) and,
when gated, two descriptors by SCM_RIGHTS: its seccomp listener and its table of calls (``call_table``). The
agent answers ``{"ok": true}`` or ``{"error": {...}}``; from its ok to the end of the connection the agent
receives, and otherwise the wrapper does. Once the program is
executed the wrapper says ``{"started": true}``, at its end ``{"exit": STATUS}`` (of wait(2)). Only standard
library here.
"""

from __future__ import annotations

import json
from typing import Any

PACKET_MAX_BYTES = 65_536


def pack(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """A packet as a map; raises ValueError for anything else."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a map")
    return message
