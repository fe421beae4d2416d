"""``dkctl nodes``: the storage nodes, and what may be done with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import client, exits, options, output, repairs
from dkctl.output import Column

COLUMNS = [
    Column("NODE", "node"),
    Column("DOMAIN", "domain"),
    Column("STATE", "state"),
    Column("SHARDS", "shards"),
    Column("STORED", "stored"),
    Column("DAMAGED", "damaged"),
    Column("AWAY SINCE", "away"),
    Column("PROCESS", "process"),
    Column("PID", "pid"),
    Column("STORE", "store", wide=True),
]


@click.group(invoke_without_command=True)
@click.pass_context
@options.directory
@options.form
def nodes(context: click.Context, directory: Path, form: str) -> exits.Exit | None:
    """Show the storage nodes; drain, stop, start, replace or remove one."""
    if context.invoked_subcommand is not None:
        return None
    control = client.Control.of(directory)
    repair = repairs.Repair.of(directory)
    return output.show(of_nodes(repair.status(), control.storage()), form)


def of_nodes(status: dict[str, Any], storage: dict[str, Any]) -> output.Answer:
    processes = {process["node"]: process for process in storage["nodes"]}
    rows = [_row(node, processes.get(node["node"], {})) for node in status["nodes"]]
    bad = [node["node"] for node in status["nodes"] if node["state"] != "up" or node["damaged"]]
    verdict = f"{len(rows)} storage nodes; {status['geometry']} {status['words']}."
    if bad:
        verdict += f" Not well: {', '.join(bad)}."
    return output.Answer(
        verdict,
        {"geometry": status["geometry"], "words": status["words"], "nodes": rows},
        tables=[output.Table(COLUMNS, rows)],
        items=rows,
        names=[f"node/{row['node']}" for row in rows],
        exit=exits.Exit.ATTENTION if bad else exits.Exit.DONE,
        hints=["dkctl health"] if bad else [],
    )


def _row(node: dict[str, Any], process: dict[str, Any]) -> dict[str, Any]:
    return node | {
        "stored": output.size(node["stored_bytes"]),
        "away": output.moment(node["away_since_us"]),
        "process": "stopped" if process.get("stopped") else process.get("state"),
        "pid": process.get("pid"),
        "store": process.get("store"),
    }


@nodes.command()
@click.argument("node")
@options.directory
@options.form
def drain(node: str, directory: Path, form: str) -> exits.Exit:
    """Empty NODE: its shards are made anew elsewhere before they are removed from it."""
    state = repairs.Repair.of(directory).drain(node, draining=True)
    left = state["shards"]
    answer = output.Answer(
        f"Storage node {node} is being emptied; it still holds {left} shards.",
        state,
        names=[f"node/{node}"],
        hints=["dkctl nodes", f"dkctl nodes remove {node}"],
    )
    return output.show(answer, form)


@nodes.command()
@click.argument("node")
@options.directory
@options.form
def undrain(node: str, directory: Path, form: str) -> exits.Exit:
    """Take NODE into use again."""
    state = repairs.Repair.of(directory).drain(node, draining=False)
    return output.show(
        output.Answer(f"Storage node {node} takes shards again.", state, names=[f"node/{node}"]), form
    )


@nodes.command()
@click.argument("node")
@click.option("--kill", is_flag=True, help="SIGKILL instead of an ordered stop.")
@options.directory
@options.form
def stop(node: str, kill: bool, directory: Path, form: str) -> exits.Exit:
    """Stop NODE; it stays stopped until it is started. Its shards are waited for, then made anew elsewhere."""
    state = client.Control.of(directory).storage_node(node, "stop", {"kill": kill})
    verdict = f"Storage node {node} was {'killed' if kill else 'stopped'}."
    return output.show(output.Answer(verdict, state, names=[f"node/{node}"], hints=["dkctl health"]), form)


@nodes.command()
@click.argument("node")
@options.directory
@options.form
def start(node: str, directory: Path, form: str) -> exits.Exit:
    """Start NODE again."""
    state = client.Control.of(directory).storage_node(node, "start", {})
    return output.show(output.Answer(f"Storage node {node} runs.", state, names=[f"node/{node}"]), form)


@nodes.command()
@click.argument("node")
@click.option("--accept-loss", is_flag=True, help="Also where segments need what is on it.")
@options.directory
@options.form
def replace(node: str, accept_loss: bool, directory: Path, form: str) -> exits.Exit:
    """Give NODE a new, empty disk; its old store is moved aside and its shards are made anew.

    Refused while some segment could not be read without this node.
    """
    if not accept_loss:
        _check_spare(repairs.Repair.of(directory), node)
    state = client.Control.of(directory).storage_node(node, "replace", {})
    verdict = f"Storage node {node} begins with an empty store; the old one stands beside it."
    return output.show(output.Answer(verdict, state, names=[f"node/{node}"], hints=["dkctl rebuild"]), form)


@nodes.command()
@click.argument("node")
@options.directory
@options.form
def remove(node: str, directory: Path, form: str) -> exits.Exit:
    """Take NODE out of the deployment for good. Refused while it still holds shards."""
    found = [one for one in repairs.Repair.of(directory).status()["nodes"] if one["node"] == node]
    if found and (found[0]["shards"] or found[0]["state"] != "draining"):
        raise errors.Refused(
            f"storage node {node} is {found[0]['state']} and holds {found[0]['shards']} shards",
            reason="node-not-empty",
            hint=f"dkctl nodes drain {node}, and wait until it is empty",
        )
    state = client.Control.of(directory).storage_node(node, "remove", {})
    verdict = f"Storage node {node} is no part of the deployment any more; its store stays on disk."
    return output.show(output.Answer(verdict, state, names=[f"node/{node}"]), form)


def _check_spare(repair: repairs.Repair, node: str) -> None:
    found = repair.health()
    state = next((one["state"] for one in repair.status()["nodes"] if one["node"] == node), "up")
    if found["spare"] is not None and found["spare"] < 1 and state in ("up", "draining"):
        raise errors.Refused(
            f"some segments can be read only with what is on {node}; nothing was changed",
            reason="node-needed",
            hint="dkctl rebuild first, or --accept-loss",
            node=node,
        )
