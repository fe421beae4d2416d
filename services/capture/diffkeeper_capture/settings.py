"""The capture agent's settings file."""

from __future__ import annotations

from diffkeeper import settings

MIB = 1024 * 1024


class AgentSettings(settings.Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One agent serves one site on one node. Sizes are bytes."""

    site: str
    dir: str  # spools, tree states, logs of programs
    token_file: str
    servers: list[str]  # of the site's broker
    broker_secret_file: str
    gate_socket: str = ""  # default: gate.sock in ``dir``
    host: str = "127.0.0.1"
    port: int = 0
    # Counted twice in the agent's resident memory: the ring is mapped two times in a row.
    ring_bytes: int = 32 * MIB
    spool_bytes: int = 4096 * MIB
    linger_ms: float = 2.0
    linger_most_ms: float = 20.0
    degrade_after_s: float = 30.0
