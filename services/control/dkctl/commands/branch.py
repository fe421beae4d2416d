"""``dkctl branch``: writable copies of a volume at a moment, and what a fenced writer left behind."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, exits, options, orphan_branches, output, when
from dkctl.output import Column

COLUMNS = [
    Column("BRANCH", "name"),
    Column("OF", "position"),
    Column("MOMENT", "at"),
    Column("CREATED", "created"),
    Column("PATH", "path"),
]

_HOW = {
    "copied": "",
    "reflinks": ", by reflinks",
    "lazy": ", and is filled while it is used: what is touched comes first, the rest behind it",
}


class _Branch(click.Group):
    """``dkctl branch VOLUME NAME`` is short for ``dkctl branch create VOLUME NAME``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["create", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Branch)
def branch() -> None:
    """Writable copies of a volume: create (or dkctl branch VOLUME NAME [--at WHEN]), list, drop.

    Also what fenced writers left behind, the orphan branches: list, merge, drop, and dkctl diff VOLUME branch:NAME main.
    """


branch.add_command(orphan_branches.merge)


@branch.command()
@click.argument("volume")
@click.argument("name")
@click.option("--at", "at", type=when.WHEN, default="latest", show_default=True, help="Which moment.")
@options.directory
@options.form
def create(volume: str, name: str, at: str, directory: Path, form: str) -> exits.Exit:
    """Make a directory that holds VOLUME as it was at a moment, to be written to at will.

    Nothing that is done in it touches the volume. WHEN takes it as branch:NAME from then on.
    """
    found = client.Control.of(directory).history(volume, f"branches/{name}", method="PUT", body={"when": at})
    where = when.resolved(found["position"], found["at_us"])
    answer = output.Answer(
        f"Branch {name} of {volume} at {where} is in {found['path']}{_HOW[found.get('how', 'copied')]}."
        + (f" It was copied because {found['why_not_lazy']}." if found.get("why_not_lazy") else ""),
        found,
        names=[found["path"]],
    )
    return output.show(answer, form)


@branch.command("list")
@click.argument("volume")
@options.directory
@options.form
def list_(volume: str, directory: Path, form: str) -> exits.Exit:
    """Show the branches of VOLUME, and the orphan branches that fenced writers left."""
    control = client.Control.of(directory)
    found = control.history(volume, "branches")["branches"]
    left = control.branches(volume)["branches"]
    rows = [
        one | {"at": output.moment(one["at_us"]), "created": output.moment(one["created_us"])}
        for one in found
    ]
    answer = output.Answer(
        f"{len(rows)} branches of {volume}, {len(left)} orphan branches.",
        {"volume": volume, "branches": found, "orphans": left},
        tables=[
            output.Table(COLUMNS, rows),
            output.Table(orphan_branches.COLUMNS, orphan_branches.rows_of(left)),
        ],
        items=[*found, *left],
        names=[one["name"] for one in (*found, *left)],
    )
    return output.show(answer, form)


@branch.command()
@click.argument("volume")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--accept-loss", is_flag=True, help="Of an orphan branch: do not have its name typed.")
@options.directory
@options.form
def drop(volume: str, name: str, yes: bool, accept_loss: bool, directory: Path, form: str) -> exits.Exit:
    """Remove a branch, with everything that was written in it.

    What only an orphan branch holds is lost with it, so its name is to be typed.
    """
    from dkctl import confirm

    control = client.Control.of(directory)
    if orphan_branches.is_one(control, volume, name):
        return orphan_branches.drop_for_good(control, volume, name, accepted=accept_loss, form=form)
    confirm.traffic(f"Branch {name} of {volume} and all that was written in it go.", yes=yes)
    found = control.history(volume, f"branches/{name}", method="DELETE")
    return output.show(output.Answer(f"Branch {name} of {volume} is gone.", found, names=[name]), form)
