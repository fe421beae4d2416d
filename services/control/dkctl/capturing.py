"""Bringing a directory under capture: what ``dkctl run`` and ``dkctl attach`` share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from diffkeeper.domain import errors
from dkctl import client, progress

POLL_S = 0.1
_ENDED = frozenset({"failed", "fenced", "released"})

F = TypeVar("F", bound=Callable[..., Any])


def options(function: F) -> F:
    """The options that say what is captured, and how safe it is."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--site", required=True, metavar="SITE", help="The site whose directory it is."),
    click.option(
        "--path",
        # Whether it is there, and a directory, control says: one answer for CLI and API.
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The directory; not needed when the site knows the volume.",
    ),
    click.option(
        "--durability",
        type=click.Choice(["observe", "site", "remote"]),
        default="remote",
        show_default=True,
        help="How far a write has gone when fsync returns.",
    ),
    click.option(
        "--policy",
        type=click.Choice(["block", "degrade"]),
        default="block",
        show_default=True,
        help="What happens while that cannot be met.",
    ),
    click.option(
        "--mode",
        type=click.Choice(["exclusive", "shared"]),
        default="exclusive",
        show_default=True,
        help="One writer, or one at each site, whose directories are merged.",
    ),
    click.option(
        "--probe",
        type=click.Choice(["auto", "bpf", "watch"]),
        default="auto",
        show_default=True,
        help="How writes are seen; auto takes bpf where it may.",
    ),
    click.option(
        "--no-wait", is_flag=True, help="Do not wait until what is there already is safe at the level."
    ),
]


def door_options(function: F) -> F:
    """The options of a front door."""
    for option in reversed(_DOOR_OPTIONS):
        function = option(function)
    return function


_DOOR_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--listen",
        metavar="[tcp:][ADDRESS:]PORT",
        help="A front door: clients connect here, wherever the program runs. HTTP, or any TCP with tcp:.",
    ),
    click.option(
        "--forward",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="Where the program listens at every site; without it a free port, {port} in COMMAND.",
    ),
    click.option(
        "--hold-max",
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        metavar="COUNT",
        help="How many requests the front door holds while the program moves.",
    ),
    click.option(
        "--hold-ms",
        type=click.IntRange(min=1),
        default=10_000,
        show_default=True,
        help="How long it holds one.",
    ),
    click.option(
        "--drain-ms",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help="How long a planned move waits for requests that are under way.",
    ),
]


def door_body(
    listen: str | None, forward: int | None, hold_max: int, hold_ms: int, drain_ms: int
) -> dict[str, Any] | None:
    """The part of a request to run that asks for a front door."""
    if listen is None:
        if forward is not None:
            raise click.UsageError("--forward needs --listen.")
        return None
    return {
        "listen": listen,
        "forward": forward,
        "hold_max": hold_max,
        "hold_ms": hold_ms,
        "drain_ms": drain_ms,
    }


def body(site: str, path: Path | None, durability: str, policy: str, mode: str, probe: str) -> dict[str, Any]:
    """The part of a request for capture that both commands send."""
    return {
        "site": site,
        # The caller's idea of a relative path is not control's.
        "path": None if path is None else str(path.absolute()),
        "durability": durability,
        "policy": policy,
        "mode": mode,
        "probe": probe,
    }


def wait_until_ready(control: client.Control, volume: dict[str, Any]) -> dict[str, Any]:
    """Poll until the base is safe at the asked level; raises when the capture ended instead."""
    bar = progress.BaseProgress()
    try:
        while not volume["ready"]:
            if volume["state"] in _ENDED:
                raise errors.DiffKeeperError(
                    f"the capture of {volume['volume']} is {volume['state']}: "
                    + str(volume.get("detail") or "without a detail"),
                    reason="capture-ended",
                    hint=f"dkctl status {volume['volume']} -o wide",
                )
            bar.show(volume)
            time.sleep(POLL_S)
            volume = control.volume(volume["volume"])
    finally:
        bar.end()
    return volume
