"""``dkctl check``: one look for a monitoring system, as a Nagios plugin or as Prometheus text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import alarms, client, exits, options, output
from dkctl.alarms import Alarm, Severity

FORMATS = ("text", "nagios", "prometheus")
# What the exposition format asks to be escaped in a label's value.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@click.command()
@click.argument("volume", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option(
    "--warn-lag",
    "warn_lag_ms",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    metavar="MS",
    help="A warning when a write waits longer than this to be shipped.",
)
@click.option(
    "--critical-lag",
    "critical_lag_ms",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="MS",
)
@click.option(
    "--stale",
    "stale_ms",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="MS",
    help="A warning when figures are older than this.",
)
@options.directory
def check(
    volume: str | None, form: str, warn_lag_ms: int, critical_lag_ms: int, stale_ms: int, directory: Path
) -> int:
    """Check the deployment, or one VOLUME, for a monitoring system.

    \b
    text         a line a finding; exit code 0, or 1 when something needs attention
    nagios       one line with performance data; exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
    prometheus   the same as metrics, for a textfile collector; exit code 0 unless control is not reached
    """
    limits = alarms.Limits(warn_lag_ms, critical_lag_ms, stale_ms)
    if critical_lag_ms < warn_lag_ms:
        raise click.UsageError("--critical-lag is below --warn-lag.")
    try:
        sites, volumes = _look(client.Control.of(directory), volume)
    except errors.DiffKeeperError as error:
        if form != "nagios":
            raise
        click.echo(f"DIFFKEEPER UNKNOWN - {error.message}".replace("\n", " ").replace("|", "/"))
        return Severity.UNKNOWN
    found = alarms.of_status(sites, volumes, limits)
    if form == "prometheus":
        click.echo(exposition(sites, volumes, found), nl=False)
        return exits.Exit.DONE
    if form == "nagios":
        click.echo(plugin_line(volumes, found, limits))
        return alarms.worst(found)
    for alarm in found:
        click.echo(f"{alarm.severity.name}: {alarm.text}")
    if not found:
        output.say(f"Nothing to report: {len(sites)} sites, {len(volumes)} volumes.")
    return exits.Exit.ATTENTION if found else exits.Exit.DONE


def _look(control: client.Control, volume: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if volume is not None:
        return [], [control.volume(volume)]
    status = control.status()
    return status["sites"], status["volumes"]


def plugin_line(volumes: list[dict[str, Any]], found: list[Alarm], limits: alarms.Limits) -> str:
    """``SERVICE STATUS - text | 'label'=value;warn;crit;min``, as monitoring plugins print it."""
    text = "; ".join(alarm.text for alarm in found) or f"{len(volumes)} volumes are well"
    figures = []
    for volume in volumes:
        waiting = alarms.lag_ms(volume)
        if waiting is not None:
            bounds = f"{limits.warn_lag_ms};{limits.critical_lag_ms};0"
            figures.append(f"'{volume['volume']}_lag'={waiting}ms;{bounds}")
        figures.append(f"'{volume['volume']}_replicas'={alarms.ready_replicas(volume)};;;0")
    # A bar ends the text.
    line = f"DIFFKEEPER {alarms.worst(found).name} - {text}".replace("\n", " ").replace("|", "/")
    return line + (f" | {' '.join(figures)}" if figures else "")


def exposition(sites: list[dict[str, Any]], volumes: list[dict[str, Any]], found: list[Alarm]) -> str:
    """Prometheus text format 0.0.4; times in seconds."""
    count = {severity: sum(1 for alarm in found if alarm.severity is severity) for severity in Severity}
    families: list[tuple[str, str, list[tuple[dict[str, str], float]]]] = [
        (
            "diffkeeper_site_alive",
            "Whether a site is alive and whole.",
            [({"site": site["site"]}, float(site["state"] == "alive")) for site in sites],
        ),
        (
            "diffkeeper_volume_lag_seconds",
            "How long what is not shipped yet has been waiting.",
            [
                ({"volume": volume["volume"]}, waiting / 1000)
                for volume in volumes
                if (waiting := alarms.lag_ms(volume)) is not None
            ],
        ),
        (
            "diffkeeper_volume_ready_replicas",
            "Sites that could take over now.",
            [({"volume": volume["volume"]}, float(alarms.ready_replicas(volume))) for volume in volumes],
        ),
        (
            "diffkeeper_volume_open_gaps",
            "Gaps in capture that are not closed.",
            [
                ({"volume": volume["volume"]}, float((volume.get("gaps") or {}).get("open") or 0))
                for volume in volumes
            ],
        ),
        (
            "diffkeeper_alarms",
            "Findings of dkctl check, by severity.",
            [
                ({"severity": severity.name.lower()}, float(count[severity]))
                for severity in (Severity.WARNING, Severity.CRITICAL)
            ],
        ),
    ]
    return "".join(_family(name, text, samples) for name, text, samples in families if samples)


def _family(name: str, text: str, samples: list[tuple[dict[str, str], float]]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        pairs = ",".join(f'{key}="{label.translate(_ESCAPES)}"' for key, label in labels.items())
        lines.append(f"{name}{{{pairs}}} {value:g}")
    return "\n".join(lines) + "\n"
