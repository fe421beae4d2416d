"""How the streams of the log must be configured, and whether a stream found at a broker is so. Pure.

Nothing limits or removes messages inside a stream: a gap in it can then only mean damage. A stream that
differs in a field named here is not used, because its acknowledgements would not mean what receipts say.
"""

from __future__ import annotations

from typing import Any

from diffkeeper.domain import errors, volumes

# How long the broker remembers message ids; compare-and-set protects beyond it.
DUPLICATE_WINDOW_NS = 120 * 1_000_000_000

_KEPT_FOR_EVER: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "new",
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msgs_per_subject": -1,
    "deny_delete": True,
    "deny_purge": True,
    "allow_rollup_hdrs": False,
    "allow_msg_ttl": False,
    "compression": "none",
    "sealed": False,
    "no_ack": False,
}


def origin_config(origin: volumes.Origin, replicas: int) -> dict[str, Any]:
    """The stream an origin is written to, at its own site."""
    return {
        **_KEPT_FOR_EVER,
        "name": origin.stream,
        "subjects": [origin.subject],
        "num_replicas": replicas,
        "duplicate_window": DUPLICATE_WINDOW_NS,
    }


def mirror_config(origin: volumes.Origin, replicas: int) -> dict[str, Any]:
    """Another site's copy of an origin stream, fetched through the API of the origin's JetStream domain."""
    return {
        **_KEPT_FOR_EVER,
        "name": origin.stream,
        "num_replicas": replicas,
        "mirror": {"name": origin.stream, "external": {"api": api_prefix(origin.site), "deliver": ""}},
    }


def origin_of(config: dict[str, Any]) -> volumes.Origin | None:
    """Whose frames a stream holds, by its configuration; None for a stream that is none of ours."""
    mirror = config.get("mirror")
    if mirror is None:
        tokens = [str(subject).split(".") for subject in config.get("subjects") or []]
        if len(tokens) != 1 or len(tokens[0]) != 4 or tokens[0][0] != "dk" or tokens[0][3] != "frame":
            return None
        origin = volumes.Origin(tokens[0][1], tokens[0][2])
    else:
        # Volumes and sites may hold hyphens: only the API prefix says where the one ends and the other begins.
        site = str((mirror.get("external") or {}).get("api", "")).removeprefix("$JS.").removesuffix(".API")
        name = str(mirror.get("name", ""))
        origin = volumes.Origin(name.removeprefix("dk-").removesuffix(f"-{site}"), site)
    return origin if origin.stream == config.get("name") else None


def api_prefix(domain: str) -> str:
    return f"$JS.{domain}.API"


# Brokers leave these out of an answer when they have their zero value.
_ABSENT = {"subjects": None, "duplicate_window": 0, "mirror": None}


def check(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise Misconfigured, naming the first field that differs."""
    for field, want in {**_ABSENT, **wanted}.items():
        have = _plain(found.get(field))
        if have != _plain(want):
            raise errors.Misconfigured(
                f"stream {wanted['name']} has {field} = {have!r}, not {want!r}; it was not touched",
                reason="stream-config",
                hint=f"another program made or changed it: nats stream info {wanted['name']}",
                stream=wanted["name"],
                field=field,
            )


def _plain(value: Any) -> Any:
    """Zero values and absent ones are the same to a broker; so are the parts of a nested value."""
    if isinstance(value, dict):
        kept = {key: _plain(part) for key, part in value.items()}
        return {key: part for key, part in kept.items() if part is not None} or None
    return value or None
