"""``kubectl diffkeeper``: status, failover and log of SACs, with dkctl's own questions, answers and exit codes.

Status and failover ask Kubernetes alone: a failover is a Switchover, which stays as its record. The log is control's.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from diffkeeper.domain import errors
from dkctl import client, confirm, exits, main, options, output
from dkctl.commands import log as log_command
from dkctl.kubectl import SAC, SWITCHOVER, Kubectl
from dkctl.output import Column

PROGRAM = "kubectl diffkeeper"
POLL_S = 0.5

SAC_COLUMNS = [
    Column("NAME", "name"),
    Column("PHASE", "phase"),
    Column("PRIMARY", "primary"),
    Column("EPOCH", "epoch"),
    Column("READY", "ready"),
    Column("VOLUME", "volume", wide=True),
    Column("POSITION", "position", wide=True),
]
CLUSTER_COLUMNS = [
    Column("CLUSTER", "name"),
    Column("ROLE", "role"),
    Column("STATE", "state"),
    Column("READY", "ready"),
    Column("POSITION", "position"),
]
CONDITION_COLUMNS = [
    Column("CONDITION", "type"),
    Column("STATUS", "status"),
    Column("REASON", "reason"),
    Column("MESSAGE", "message"),
]
_ENDS = {"Succeeded": exits.Exit.DONE, "Failed": exits.Exit.FAILED, "Refused": exits.Exit.REFUSED}

F = TypeVar("F", bound=Callable[..., Any])


def kubernetes(function: F) -> F:
    """The options of kubectl that say where; ``_where`` reads them."""
    for flags in (("--kubeconfig",), ("-n", "--namespace"), ("--context",)):
        function = click.option(
            *flags, metavar="NAME", expose_value=False, callback=_keep, help="As kubectl has it."
        )(function)
    return function


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(dict)[parameter.name] = value


def _where() -> Kubectl:
    given = click.get_current_context().ensure_object(dict)
    return Kubectl(
        context=given.get("context"), namespace=given.get("namespace"), kubeconfig=given.get("kubeconfig")
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def plugin() -> None:
    """Look after the SACs of a Kubernetes cluster. Exit codes are those of dkctl."""


@plugin.command()
@click.argument("name", required=False)
@options.form
@kubernetes
def status(name: str | None, form: str) -> exits.Exit:
    """Show all SACs of the namespace, or one. Exit code 1 when something needs attention."""
    where = _where()
    sacs = [where.one(SAC, name)] if name else where.all(SAC)
    return output.show(of_sacs(sacs, whole=name is not None), form)


@plugin.command()
@click.argument("name")
@click.option("--to", "target", required=True, metavar="CLUSTER", help="The cluster that shall lead.")
@click.option("--force", is_flag=True, help="Also when the leader may be alive but does not answer.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before traffic moves.")
@click.option("--accept-loss", is_flag=True, help="Do not ask before acknowledged writes may be lost.")
@options.timeout(120.0)
@options.form
@kubernetes
def failover(
    name: str,
    target: str,
    force: bool,
    yes: bool,
    accept_loss: bool,
    timeout_s: float,
    form: str,
) -> exits.Exit:
    """Make another cluster lead NAME, by a Switchover that stays as the record of it."""
    where = _where()
    before = where.one(SAC, name)
    leader = before.get("status", {}).get("primary") or "(nobody)"
    statement = f"{name} moves from {leader} to {target}; its program is stopped and started."
    if force:
        confirm.loss(f"{statement} What only {leader} has is lost to it.", name, accepted=accept_loss)
    else:
        confirm.traffic(statement, yes=yes)
    made = where.create(switchover(name, target, force=force))
    ended = _follow(where, made, timeout_s)
    return output.show(of_switchover(ended), form)


@plugin.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--control",
    "address",
    envvar="DIFFKEEPER_CONTROL",
    required=True,
    metavar="URL",
    show_envvar=True,
    help="Control's admin API, such as http://127.0.0.1:7400 of a kubectl port-forward.",
)
@click.option(
    "--token-file",
    envvar="DIFFKEEPER_TOKEN_FILE",
    required=True,
    type=click.Path(path_type=Path),
    show_envvar=True,
)
@options.form
@kubernetes
def log(name: str, limit: int, address: str, token_file: Path, form: str) -> exits.Exit:
    """Show what changed in the volume of NAME, as dkctl log does."""
    volume = _where().one(SAC, name).get("status", {}).get("volume")
    if not volume:
        raise errors.NotFound(
            f"{name} has no volume yet", reason="no-volume", hint="kubectl diffkeeper status"
        )
    control = client.Control(address, _token(token_file))
    return output.show(log_command.of_page(_page(control, volume, limit)), form)


def _page(control: client.Control, volume: str, limit: int) -> dict[str, Any]:
    try:
        found = control.history(volume, "log", [("limit", str(limit)), ("activity", "0")])
    except errors.DiffKeeperError as error:
        if error.reason not in ("no-history", "no-such-route", "unknown-volume"):
            raise
        return control.log(volume, None, limit)
    return {"volume": volume, "source": "the history", **found}


def of_sacs(sacs: Sequence[dict[str, Any]], *, whole: bool) -> output.Answer:
    """A row each; of a single one also its clusters and conditions."""
    ill = [sac for sac in sacs if sac.get("status", {}).get("phase") != "Protected"]
    told = "; ".join(f"{_name(sac)} is {_phase(sac)}" for sac in ill)
    verdict = f"Needs attention: {told}." if ill else f"All is well: {len(sacs)} SACs are protected."
    tables = [output.Table(SAC_COLUMNS, [_row(sac) for sac in sacs])]
    if whole:
        state = sacs[0].get("status", {})
        tables += [
            output.Table(CLUSTER_COLUMNS, state.get("clusters", [])),
            output.Table(CONDITION_COLUMNS, state.get("conditions", [])),
        ]
    return output.Answer(
        verdict,
        {"sacs": list(sacs)},
        tables=tables,
        items=sacs,
        names=[f"sac/{_name(sac)}" for sac in sacs],
        exit=exits.Exit.ATTENTION if ill else exits.Exit.DONE,
    )


def switchover(name: str, target: str, *, force: bool) -> dict[str, Any]:
    """Asked for after the loss was accepted, where there may be one."""
    loss = {"force": True, "acceptLoss": name} if force else {}
    return {
        "apiVersion": "sacs.diffkeeper.io/v1",
        "kind": "Switchover",
        # A record is never overwritten, so each has a name of its own.
        "metadata": {"name": f"{name}-to-{target}-{secrets.token_hex(3)}"},
        "spec": {"sac": name, "to": target, **loss},
    }


def of_switchover(made: dict[str, Any]) -> output.Answer:
    state = made["status"]
    hint = state.get("hint")
    return output.Answer(
        f"{state['phase']}: {state.get('message', '')}",
        made,
        names=[f"switchover/{_name(made)}"],
        exit=_ENDS[state["phase"]],
        hints=[hint] if hint else [],
    )


def _follow(where: Kubectl, made: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    name, end, told = _name(made), time.monotonic() + timeout_s, 0
    while time.monotonic() < end:
        made = where.one(SWITCHOVER, name)
        state = made.get("status", {})
        for step in state.get("steps", [])[told:]:
            told += 1
            took = output.duration(step.get("tookMillis")) or ""
            output.say(f"  {step['phase']:<10} {step.get('outcome', '')} {took}")
        if state.get("phase") in _ENDS:
            return made
        time.sleep(POLL_S)
    raise errors.TimedOut(
        f"the Switchover {name} has not ended within {timeout_s:g} s; it goes on",
        reason="no-end",
        hint=f"kubectl describe switchover {name}; is the operator running?",
    )


def _row(sac: dict[str, Any]) -> dict[str, Any]:
    state = sac.get("status", {})
    ready, desired = state.get("readyReplicas"), state.get("desiredReplicas")
    return {
        **state,
        "name": _name(sac),
        "ready": None if ready is None else f"{ready}/{desired}",
    }


def _name(thing: dict[str, Any]) -> str:
    return str(thing["metadata"]["name"])


def _phase(sac: dict[str, Any]) -> str:
    state = sac.get("status", {})
    return f"{state.get('phase', 'not seen by an operator yet')} ({state.get('message', '')})"


def _token(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.Misconfigured(
            f"the token file {path} cannot be read: {error}", reason="token-unreadable"
        ) from error


def main_plugin() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main.invoke(command=plugin, name=PROGRAM))
