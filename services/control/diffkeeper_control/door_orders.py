"""What a volume's front door should do, worked out from the registry alone. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_control import registry

# A word before the address says how clients speak, so a name needs a dot in it; an IPv6 address stands in brackets.
_LISTEN = re.compile(
    r"(?:(http|tcp):)?(?:\[([0-9A-Fa-f:.]+)\]:|(localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+):)?(\d{1,5})"
)
LOOPBACK = "127.0.0.1"
HOLD_MAX, HOLD_MS, DRAIN_MS = 1000, 10_000, 1000
_HOLD_MAX_RANGE, _HOLD_MS_RANGE, _DRAIN_MS_RANGE = (1, 100_000), (1, 600_000), (0, 600_000)


@dataclass(frozen=True, slots=True)
class Asked:
    """``dkctl run --listen``. ``forward`` is the program's port at every site; None: one of our choice."""

    listen: str
    forward: int | None = None
    hold_max: int = HOLD_MAX
    hold_ms: int = HOLD_MS
    drain_ms: int = DRAIN_MS


def check(asked: Asked, volume: str, others: list[registry.Volume]) -> registry.Door:
    """The door as it is recorded, without ports yet. Raises Refused."""
    match = _LISTEN.fullmatch(asked.listen)
    port = int(match[4]) if match else 0
    if match is None or not 0 < port < 65536:
        raise errors.Refused(
            f"{asked.listen!r} is no address to listen on",
            reason="bad-listen",
            hint="[http:|tcp:][ADDRESS:]PORT, such as 8080, 0.0.0.0:8080, [::1]:8080 or tcp:5432",
        )
    host = match[2] or match[3] or LOOPBACK
    if asked.forward is not None and not 0 < asked.forward < 65536:
        raise errors.Refused("a port is a number from 1 to 65535", reason="bad-forward")
    if asked.forward == port:
        raise errors.Refused(
            f"the program would listen on {port}, which is the front door's own port",
            reason="bad-forward",
            hint="give the program another port with --forward, or leave --forward out and use {port}",
        )
    for name, value, (least, most) in (
        ("hold_max", asked.hold_max, _HOLD_MAX_RANGE),
        ("hold_ms", asked.hold_ms, _HOLD_MS_RANGE),
        ("drain_ms", asked.drain_ms, _DRAIN_MS_RANGE),
    ):
        if not least <= value <= most:
            raise errors.Refused(f"{name} is from {least} to {most}, not {value}", reason="bad-request")
    for other in others:
        taken = other.door is not None and (other.door.host, other.door.port) == (host, port)
        if other.name != volume and taken and is_wanted(other):
            raise errors.Refused(
                f"the front door of volume {other.name} listens on {host}:{port}",
                reason="listen-taken",
                hint="choose another address for --listen",
            )
    return registry.Door(
        host=host,
        port=port,
        protocol=match[1] or "http",
        hold_max=asked.hold_max,
        hold_ms=asked.hold_ms,
        drain_ms=asked.drain_ms,
    )


def is_wanted(volume: registry.Volume) -> bool:
    """A door stands open while the volume's program is supposed to run, wherever that is."""
    return volume.door is not None and volume.held_since_us is not None


def opened(volume: registry.Volume, host: str) -> dict[str, Any]:
    """The body of ``PUT /v1/doors/V`` that leads to the leader, whose programs are found at ``host``."""
    door = volume.door
    assert door is not None, "asked for volumes with a door only"
    return {
        "listen_host": door.host,
        "listen_port": door.port,
        "protocol": door.protocol,
        "state": "open",
        "site": volume.leader,
        "host": host,
        "port": door.ports[volume.leader],
        "hold_max": door.hold_max,
        "hold_ms": door.hold_ms,
    }


def held(volume: registry.Volume, host: str, *, cut: bool) -> dict[str, Any]:
    """The body that lets nobody through; by itself it ends when nobody can be waiting any more."""
    assert volume.door is not None, "asked for volumes with a door only"
    lapse_ms = volume.door.hold_ms + volume.door.drain_ms
    return {**opened(volume, host), "state": "hold", "cut": cut, "lapse_ms": lapse_ms}


def is_met(volume: registry.Volume, host: str, status: dict[str, Any] | None) -> bool:
    """Whether a door's status shows that it leads where it should."""
    if status is None or status.get("state") != "open":
        return False
    order = status.get("order") or {}
    return all(order.get(key) == value for key, value in opened(volume, host).items())
