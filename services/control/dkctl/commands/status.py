"""``dkctl status``: sites and volumes, how far each replica is, and what needs attention."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import client, exits, health, options, output, shared_status
from dkctl.output import Column

SITE_COLUMNS = [
    Column("SITE", "site"),
    Column("STATE", "state"),
    Column("LEADS", "leads"),
    Column("PROCESSES", "processes"),
    Column("HEARD", "heard"),
    Column("PIDS", "pids", wide=True),
    Column("DETAIL", "detail", wide=True),
]
VOLUME_COLUMNS = [
    Column("VOLUME", "volume"),
    Column("STATE", "state"),
    Column("LEADER", "leader"),
    Column("EPOCH", "epoch"),
    Column("LEVEL", "level"),
    Column("CAPTURED", "captured"),
    Column("LAG", "lag"),
    Column("MEASURED", "measured"),
    Column("PROBE", "probe"),
    Column("FIDELITY", "fidelity"),
    Column("PID", "pid"),
    Column("FAILOVER", "failover"),
    Column("PATH", "path", wide=True),
]
REPLICA_COLUMNS = [
    Column("REPLICA", "volume"),
    Column("SITE", "site"),
    Column("ROLE", "role"),
    Column("STATE", "state"),
    Column("JOURNALLED", "journalled"),
    Column("APPLIED", "applied"),
    Column("LAG", "lag"),
    Column("MEASURED", "measured"),
    Column("PATH", "path", wide=True),
]
DOOR_COLUMNS = [
    Column("FRONT DOOR", "volume"),
    Column("LISTEN", "listen"),
    Column("STATE", "state"),
    Column("LEADS TO", "target"),
    Column("WAITING", "waiting"),
    Column("UNDER WAY", "in_flight"),
    Column("REQUESTS", "requests"),
    Column("LONGEST HOLD", "longest"),
    Column("REFUSED", "refused", wide=True),
    Column("RESENT", "resent", wide=True),
    Column("LOST", "lost", wide=True),
    Column("HOLDS", "holds", wide=True),
]
# Directories of fenced writers: never thrown away, and nothing to be alarmed by.
ORPHAN_COLUMNS = [
    Column("ORPHAN", "volume"),
    Column("SITE", "site"),
    Column("EPOCH", "epoch"),
    Column("SINCE", "since"),
    Column("PATH", "path"),
]


@click.command()
@click.argument("volume", required=False)
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until interrupted.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks with --watch.",
)
@options.directory
@options.form
def status(volume: str | None, watch: bool, interval: float, directory: Path, form: str) -> exits.Exit:
    """Show sites and volumes, or one VOLUME. Exit code 1 when something needs attention."""
    control = client.Control.of(directory)
    while True:
        answer = look(control, volume)
        if not watch:
            return output.show(answer, form)
        _show_again(answer, form)
        time.sleep(interval)


def look(control: client.Control, volume: str | None) -> output.Answer:
    if volume is None:
        return of_deployment(control.status())
    try:
        return of_volume(control.volume(volume))
    except errors.NotFound as error:
        try:
            return shared_status.of_shared(control.shared(volume))
        except errors.NotFound:
            raise error from None


def of_deployment(status: dict[str, Any]) -> output.Answer:
    findings = health.of_status(status)
    sites, volumes = status["sites"], status["volumes"]
    well = f"All is well: {_count(len(sites), 'site')} alive, {_count(len(volumes), 'volume')}."
    return output.Answer(
        _verdict(findings, well),
        status,
        tables=[
            output.Table(SITE_COLUMNS, [site_row(site) for site in sites]),
            output.Table(VOLUME_COLUMNS, [volume_row(volume) for volume in volumes]),
            output.Table(REPLICA_COLUMNS, [row for volume in volumes for row in replica_rows(volume)]),
            output.Table(DOOR_COLUMNS, [row for volume in volumes for row in door_rows(volume)]),
            output.Table(ORPHAN_COLUMNS, [row for volume in volumes for row in orphan_rows(volume)]),
        ],
        items=[*({"kind": "site"} | site for site in sites), *({"kind": "volume"} | one for one in volumes)],
        names=[*(f"site/{site['site']}" for site in sites), *(f"volume/{one['volume']}" for one in volumes)],
        exit=exits.Exit.ATTENTION if findings else exits.Exit.DONE,
    )


def of_volume(volume: dict[str, Any]) -> output.Answer:
    findings = health.of_volume(volume)
    leader = f", led by {volume['leader']}" if volume.get("leader") else ""
    well = f"All is well: {volume['volume']} is {volume['state']}{leader}."
    return output.Answer(
        _verdict(findings, well),
        volume,
        tables=[
            output.Table(VOLUME_COLUMNS, [volume_row(volume)]),
            output.Table(REPLICA_COLUMNS, replica_rows(volume)),
            output.Table(DOOR_COLUMNS, door_rows(volume)),
            output.Table(ORPHAN_COLUMNS, orphan_rows(volume)),
        ],
        names=[f"volume/{volume['volume']}"],
        exit=exits.Exit.ATTENTION if findings else exits.Exit.DONE,
    )


def site_row(site: dict[str, Any]) -> dict[str, Any]:
    processes = site.get("processes", [])
    running = sum(process["state"] == "running" for process in processes)
    return {
        "site": site["site"],
        "state": site["state"],
        "leads": ", ".join(site.get("leads", [])),
        "processes": f"{running}/{len(processes)}",
        "heard": _ago(site.get("age_ms")),
        "pids": ", ".join(
            f"{process['name']}={process['pid']}" for process in processes if process.get("pid")
        ),
        "detail": site.get("detail"),
    }


def volume_row(volume: dict[str, Any]) -> dict[str, Any]:
    level, lag = volume.get("level") or {}, volume.get("lag") or {}
    asked = level.get("asked") or volume.get("durability")
    program = volume.get("program") or {}
    return {
        "volume": volume["volume"],
        "state": _state(volume),
        "leader": volume.get("leader"),
        "epoch": volume.get("epoch"),
        "level": f"{asked} (not met)" if level.get("met") is False else asked,
        "captured": (volume.get("positions") or {}).get("captured"),
        "lag": lag_text(lag),
        "measured": _ago(lag.get("age_ms")),
        "probe": volume.get("probe"),
        "fidelity": volume.get("fidelity"),
        "pid": program.get("pid") if program.get("running") else None,
        "failover": _failover(volume.get("automatic") or {}),
        "path": volume.get("path"),
    }


def replica_rows(volume: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "volume": volume["volume"],
            "site": one["site"],
            "role": one.get("role"),
            "state": one.get("state"),
            "journalled": one.get("journalled"),
            "applied": one.get("applied"),
            "lag": lag_text(one.get("lag") or {}),
            "measured": _ago(one.get("age_ms")),
            "path": one.get("path"),
        }
        for one in volume.get("sites", [])
        if one.get("role") == "follow"
    ]


def door_rows(volume: dict[str, Any]) -> list[dict[str, Any]]:
    door = volume.get("front_door")
    if not door:
        return []
    now = door.get("now") or {}
    target = now.get("target") or {}
    open_or_not = "open" if now.get("accepting") else "waits for the program"
    return [
        now
        | {
            "volume": volume["volume"],
            "listen": door["listen"],
            "state": open_or_not if now.get("state") == "open" else now.get("state"),
            "target": f"{target['site']}:{target['port']}" if target else None,
            "longest": output.duration(now.get("longest_hold_ms")),
            "holds": f"{door['hold_max']} for {output.duration(door['hold_ms'])}",
        }
    ]


def orphan_rows(volume: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        orphan | {"volume": volume["volume"], "since": output.moment(orphan.get("since_us"))}
        for orphan in volume.get("orphans") or []
    ]


def lag_text(lag: dict[str, Any]) -> str | None:
    if lag.get("frames") is None:
        return None
    if not lag["frames"]:
        return "none"
    return f"{lag['frames']} frames, {output.size(lag.get('bytes'))}, {output.duration(lag.get('ms'))}"


def _failover(automatic: dict[str, Any]) -> str | None:
    """Who decides it: an operator, or nobody, after how long a silence of the leader."""
    match automatic.get("state"):
        case None:
            return None
        case "ready":
            return f"automatic after {output.duration(automatic.get('ttl_ms'))}"
        case "not-now":
            return "automatic, not now"
        case _:
            return "by operator"


def _state(volume: dict[str, Any]) -> str:
    base = volume.get("base")
    if volume["state"] == "scanning" and base and base.get("bytes_total"):
        return f"scanning {100 * base['bytes'] // base['bytes_total']}%"
    return str(volume["state"])


def _ago(age_ms: float | None) -> str | None:
    return None if age_ms is None else f"{output.duration(age_ms)} ago"


def _verdict(findings: list[str], well: str) -> str:
    return f"Needs attention: {'; '.join(findings)}." if findings else well


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show_again(answer: output.Answer, form: str) -> None:
    if form == "json":
        # A document a line, so that a reader can tell where one look ends.
        text = json.dumps(answer.data) + "\n"
    else:
        text = output.render(answer, form)
    home_and_clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and form in ("table", "wide") else ""
    sys.stdout.write(home_and_clear + text)
    sys.stdout.flush()
