"""``dkctl down``: stop a deployment in order, or one site; or kill a site as a power cut would."""

from __future__ import annotations

import time
from pathlib import Path

import click

from diffkeeper import pins
from diffkeeper.domain import errors
from dkctl import client, daemon, deployments, exits, options, output, past_trees

POLL_S = 0.05


@click.command()
@click.option("--site", metavar="SITE", help="Only this site; it stays stopped until dkctl up --site SITE.")
@click.option("--node", metavar="NODE", help="Only this broker of a site, such as east-2.")
@click.option(
    "--kill", is_flag=True, help="With --site: SIGKILL to all its processes and programs; with --node: to it."
)
@options.timeout(60.0)
@options.directory
@options.form
def down(
    site: str | None, node: str | None, kill: bool, timeout_s: float, directory: Path, form: str
) -> exits.Exit:
    """Stop the deployment and everything in it. The data stay; `dkctl up` goes on with them.

    What fills directories from its past ends too: a restored directory goes on with `dkctl up`, a branch when branches
    are asked for, a mount not at all. A directory that something still uses keeps its filler: what is not there yet
    waits for `dkctl up`.
    """
    if site is not None and node is not None:
        raise click.UsageError("--site and --node exclude each other.")
    if kill and site is None and node is None:
        raise click.UsageError("--kill needs --site or --node.")
    if node is not None:
        return _one_node(client.Control.of(directory), node, form, kill=kill)
    if site is not None:
        return _one_site(client.Control.of(directory), site, form, kill=kill)
    return _everything(directory, timeout_s, form)


def _one_site(control: client.Control, site: str, form: str, *, kill: bool) -> exits.Exit:
    state = control.stop_site(site, kill=kill)
    led = state.get("leads") or []
    answer = output.Answer(
        f"Site {site} was {'killed' if kill else 'stopped'}"
        + (f"; it led {', '.join(led)}." if led else "."),
        state,
        names=[f"site/{site}"],
        hints=[f"dkctl failover {volume} --to SITE" for volume in led],
    )
    return output.show(answer, form)


def _one_node(control: client.Control, node: str, form: str, *, kill: bool) -> exits.Exit:
    site = control.stop_node(node, kill=kill)
    answer = output.Answer(
        f"Node {node} was {'killed' if kill else 'stopped'}; site {site['site']} is {site['state']}.",
        site,
        names=[f"node/{node}"],
        hints=[f"dkctl up --node {node}"],
    )
    return output.show(answer, form)


def _everything(directory: Path, timeout_s: float, form: str) -> exits.Exit:
    deployment = deployments.need(directory)
    noted = [
        process for process in deployment.processes() if daemon.is_running(process.pid, process.start_ticks)
    ]
    if not noted:
        _remove_pins(directory)
        return _told(directory, f"Nothing of the deployment in {directory} was running.", [], form)
    try:
        client.Control.of(directory).shutdown(timeout_s)
    except errors.Unreachable as error:
        if any(process.name == "control" for process in noted):
            raise _silent(directory, noted) from error
        # Control is gone and what it started runs on: a new one adopts all of it and can stop it in order.
        output.say("control is gone; taking over what it left behind ...")
        _take_over_and_stop(directory, timeout_s)
    _wait_for_end(directory, noted, timeout_s)
    _remove_pins(directory)
    verdict = f"The deployment in {directory} is down: {len(noted)} processes stopped, the data kept."
    return _told(directory, verdict, noted, form)


def _told(directory: Path, verdict: str, stopped: list[deployments.Process], form: str) -> exits.Exit:
    """The end of it: with what filled directories from its past."""
    ended, left = past_trees.stop(directory.absolute())
    data = {
        "directory": str(directory),
        "stopped": [{"name": one.name, "pid": one.pid} for one in stopped],
        "fillings": {"stopped": ended, "left": left},
    }
    for target in ended:
        verdict += f"\n{target} is closed until it is filled again."
    for target in left:
        verdict += f"\n{target} is in use and keeps its filler: what is not there yet waits for dkctl up."
    answer = output.Answer(
        verdict,
        data,
        names=[process.name for process in stopped],
        exit=exits.Exit.ATTENTION if left else exits.Exit.DONE,
        hints=[f"fuser -vm {target}   # names what uses it" for target in left],
    )
    return output.show(answer, form)


def _remove_pins(directory: Path) -> None:
    """What agents that were killed left in the kernel; those that stopped in order left nothing."""
    for capture in sorted(directory.glob("sites/*/capture")):
        pins.remove(capture)


def _wait_for_end(directory: Path, noted: list[deployments.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while left := [process for process in noted if daemon.is_running(process.pid, process.start_ticks)]:
        if time.monotonic() > deadline:
            raise errors.TimedOut(
                f"the deployment in {directory} still runs after {timeout_s:g} s: "
                + ", ".join(f"{process.name} (pid {process.pid})" for process in left),
                reason="still-running",
                hint="wait and run it again; the logs say what it waits for",
            )
        time.sleep(POLL_S)


def _take_over_and_stop(directory: Path, timeout_s: float) -> None:
    log_start = daemon.log_size(directory)
    control = daemon.start(directory, None)
    deadline = time.monotonic() + timeout_s
    while daemon.status_of(directory, control.pid) is None:
        if control.poll() is not None:
            raise daemon.ended(control.returncode, directory, log_start)
        if time.monotonic() > deadline:
            raise errors.TimedOut(
                f"a new control for {directory} did not answer within {timeout_s:g} s; nothing was stopped",
                reason="start-timeout",
                hint=f"look into {directory / daemon.LOG}",
            )
        time.sleep(POLL_S)
    client.Control.of(directory).shutdown(timeout_s)
    control.wait(timeout_s)


def _silent(directory: Path, noted: list[deployments.Process]) -> errors.Unreachable:
    control = next(process for process in noted if process.name == "control")
    return errors.Unreachable(
        f"control of {directory} (pid {control.pid}) runs but takes no calls yet; nothing was stopped",
        reason="control-unreachable",
        hint=f"wait until it does; or end it (kill {control.pid}) and run this again, which takes its work over",
    )
