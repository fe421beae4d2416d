"""What the run wrapper and the agent say to each other on ``gate.sock``: JSON in SOCK_SEQPACKET packets.

The wrapper begins with ``{"gate": VOLUME, "pid": PID, "wrapper": PID, "gated": BOOL}`` and, when gated, its
seccomp listener by SCM_RIGHTS; the agent answers ``{"ok": true}`` or ``{"error": {...}}``. Then the wrapper
says ``{"calls": [[id, pid, call], ...]}`` for stopped calls and at the end ``{"exit": STATUS}`` (of
wait(2)); the agent says ``{"go": [id, ...]}``. When the connection ends the wrapper offers itself to the
agent's successor and repeats the calls that still wait. Only standard library here.

The wrapper receives and the agent only decides, because a call that was received and not answered is never
shown to a second receiver: had the agent received it and died, the program would hang for ever.
"""

from __future__ import annotations

import json
from typing import Any

PACKET_MAX_BYTES = 65_536
# Bounded so that a packet stays far below its limit.
IDS_PER_PACKET = 512


def pack(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    assert len(data) <= PACKET_MAX_BYTES, "senders cut their lists"
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """A packet as a map; raises ValueError for anything else."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a map")
    return message
