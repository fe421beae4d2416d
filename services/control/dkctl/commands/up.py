"""``dkctl up``: a whole deployment on this machine, in the foreground or behind."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import client, daemon, deployments, exits, options, output, past_trees
from dkctl.output import Column

PROCESS_COLUMNS = [
    Column("SITE", "site"),
    Column("PROCESS", "name"),
    Column("STATE", "state"),
    Column("PID", "pid"),
    Column("ADDRESS", "address"),
    Column("LOG", "log", wide=True),
]


@click.command()
@click.option("--sites", metavar="NAMES", help="Comma-separated; east,west for a new deployment.")
@click.option("--site", metavar="SITE", help="Only start this site again, which was stopped or killed.")
@click.option("--node", metavar="NODE", help="Only start this broker again, such as east-2.")
@click.option(
    "--nodes",
    type=click.Choice(["1", "3", "5"]),
    help="Brokers a site; of 3, any one may die. 1 for a new deployment.",
)
@click.option(
    "--auto-failover/--no-auto-failover",
    default=None,
    help="Give a volume whose leader is silent to another site, where nothing acknowledged can be lost. "
    "Needs three sites; off for a new deployment.",
)
@click.option(
    "--lease-ttl-ms",
    type=click.IntRange(200, 600_000),
    metavar="MS",
    help="How long a leader is silent before another site takes over; 500 for a new deployment.",
)
@click.option(
    "--storage-nodes",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep the log also as erasure-coded segments on so many nodes; more than before adds some.",
)
@click.option("--parity", metavar="K+M", help="Data and parity shards of a segment, such as 2+8; else by N.")
@click.option(
    "--site-address",
    "addresses",
    multiple=True,
    metavar="SITE=ADDRESS[@NAMESPACE]",
    help="Where a site of a new deployment listens, and the network namespace (ip netns) it runs in; one for each "
    "site. Without, all of them share this machine's loopback address.",
)
@click.option("--detach", "-d", is_flag=True, help="Return once everything runs, and leave it running.")
@options.timeout(60.0)
@options.directory
@options.form
def up(
    sites: str | None,
    site: str | None,
    node: str | None,
    nodes: str | None,
    auto_failover: bool | None,
    lease_ttl_ms: int | None,
    storage_nodes: int | None,
    parity: str | None,
    addresses: tuple[str, ...],
    detach: bool,
    timeout_s: float,
    directory: Path,
    form: str,
) -> int:
    """Start a whole deployment on this machine, or take over what still runs of one.

    Each site gets its own nats-servers, capture agent and replicator; from three sites on, a link server too, which
    joins the sites and keeps the leases. Without --detach, Ctrl-C stops all of it in order.
    """
    whole = [sites, nodes, auto_failover, lease_ttl_ms, storage_nodes, parity, addresses or None]
    if (site is not None) + (node is not None) + any(one is not None for one in whole) > 1:
        raise click.UsageError(
            "--site and --node exclude each other, and what is said of a whole deployment."
        )
    if site is not None:
        return _one_site(client.Control.of(directory), site, form)
    if node is not None:
        return _one_node(client.Control.of(directory), node, form)
    directory = directory.absolute()
    running = daemon.status_of(directory)
    if running is not None:
        _check_same_storage(directory, storage_nodes, parity)
        return _runs_already(running, sites, directory, form, detach=detach)
    past_trees.go_on(directory)
    log_start = daemon.log_size(directory)
    told = daemon.arguments(nodes, auto_failover, lease_ttl_ms, addresses)
    process = daemon.start(directory, sites, [*told, *storage_options(storage_nodes, parity)])
    # To be asked to end is the same as Ctrl-C: what was started is stopped in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        status = daemon.wait_until_up(process, directory, log_start, timeout_s)
    except BaseException:
        _stop(process)
        raise
    output.show(what_runs(status, directory), form)
    if detach:
        # Not ours to wait for: control lives on in its own session.
        process.returncode = 0
        return exits.Exit.DONE
    return _stay(process)


def what_runs(status: dict[str, Any], directory: Path, verdict: str = "") -> output.Answer:
    sites = status["sites"]
    names = ", ".join(site["site"] for site in sites)
    return output.Answer(
        verdict or f"The deployment in {directory} is up: {names}.",
        status,
        tables=[
            output.Table(
                PROCESS_COLUMNS,
                [{"site": site["site"]} | process for site in sites for process in site["processes"]],
            )
        ],
        items=[{"kind": "site"} | site for site in sites],
        names=[f"site/{site['site']}" for site in sites],
    )


def _one_site(control: client.Control, site: str, form: str) -> exits.Exit:
    state = control.start_site(site)
    well = state["state"] == "alive"
    answer = output.Answer(
        f"Site {site} was started and is {state['state']}.",
        state,
        tables=[output.Table(PROCESS_COLUMNS, [{"site": site} | process for process in state["processes"]])],
        names=[f"site/{site}"],
        exit=exits.Exit.DONE if well else exits.Exit.ATTENTION,
        hints=["dkctl status"],
    )
    return output.show(answer, form)


def _one_node(control: client.Control, node: str, form: str) -> exits.Exit:
    site = control.start_node(node)
    answer = output.Answer(
        f"Node {node} was started; site {site['site']} is {site['state']}.",
        site,
        tables=[
            output.Table(PROCESS_COLUMNS, [{"site": site["site"]} | process for process in site["processes"]])
        ],
        names=[f"node/{node}"],
        hints=["dkctl status"],
    )
    return output.show(answer, form)


def _runs_already(
    status: dict[str, Any], sites: str | None, directory: Path, form: str, *, detach: bool
) -> exits.Exit:
    has = [site["site"] for site in status["sites"]]
    if sites is not None and sorted(sites.split(",")) != sorted(has):
        raise errors.Refused(
            f"the deployment in {directory} runs with the sites {', '.join(has)}, not {sites}",
            reason="sites-differ",
            hint="leave --sites out, or give another --dir",
        )
    if not detach:
        raise errors.Refused(
            f"the deployment in {directory} runs already, and goes on as it is",
            reason="dir-busy",
            hint=f"dkctl status --dir {directory}; dkctl down --dir {directory} stops it",
        )
    verdict = f"The deployment in {directory} runs already: {', '.join(has)}."
    return output.show(what_runs(status, directory, verdict), form)


def storage_options(storage_nodes: int | None, parity: str | None) -> list[str]:
    return [
        *(["--storage-nodes", str(storage_nodes)] if storage_nodes is not None else []),
        *(["--parity", parity] if parity is not None else []),
    ]


def _check_same_storage(directory: Path, storage_nodes: int | None, parity: str | None) -> None:
    storage = deployments.need(directory).note.get("storage") or {"nodes": {}, "geometry": None}
    more = storage_nodes is not None and storage_nodes != len(storage["nodes"])
    if more or (parity is not None and parity != storage["geometry"]):
        raise errors.Refused(
            f"the deployment in {directory} runs with {len(storage['nodes'])} storage nodes; nothing was changed",
            reason="storage-differs",
            hint=f"dkctl down --dir {directory}, then dkctl up with the new figures; the data stay",
        )


def _stay(process: subprocess.Popen[bytes]) -> int:
    """Wait for control's end; an interrupt asks for it."""
    said, stopping = False, 0
    while True:
        try:
            if not said:
                said = True  # an interrupt may come as soon as it can be read
                output.say("Ctrl-C stops it.")
            code = process.wait()
            return exits.of_returncode(code)
        except KeyboardInterrupt:
            stopping += 1
            output.say("stopping in order ..." if stopping == 1 else "stopping at once ...")
            process.send_signal(signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a control that did not come up, and with it what it had started."""
    if process.poll() is None:
        output.say("stopping what was started ...")
        process.terminate()
        process.wait()
