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
    # All sites: what this one's brokers lost is asked for there.
    sites: tuple[str, ...] = ()
    # The servers that keep the leases, the nearest first; none where there are fewer than three sites.
    lease_servers: tuple[str, ...] = ()
    gate_socket: str = ""  # default: gate.sock in ``dir``
    host: str = "127.0.0.1"
    port: int = 0
    # Part of the agent's resident memory, and how long capture may stand still under load.
    ring_bytes: int = 32 * MIB
    # The agent must read the ring before it is full, whatever else the machine does; 0 leaves the priority as it is.
    nice: int = -15
    spool_bytes: int = 4096 * MIB
    linger_ms: float = 2.0
    linger_most_ms: float = 50.0
    degrade_after_s: float = 30.0
