"""``dkctl tag``: names for moments."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, exits, options, output, when


class _Tag(click.Group):
    """``dkctl tag VOLUME NAME`` is short for ``dkctl tag set VOLUME NAME``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["set", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Tag)
def tag() -> None:
    """Name moments of a volume: set (or dkctl tag VOLUME NAME [--at WHEN]), list, drop."""


@tag.command("set")
@click.argument("volume")
@click.argument("name")
@click.option("--at", "at", type=when.WHEN, default="latest", show_default=True, help="Which moment.")
@options.directory
@options.form
def set_(volume: str, name: str, at: str, directory: Path, form: str) -> exits.Exit:
    """Name a moment; WHEN takes it as tag:NAME from then on, and no thinning takes it away."""
    found = client.Control.of(directory).history(volume, f"tags/{name}", method="PUT", body={"when": at})
    where = when.resolved(found["position"], found["at_us"])
    return output.show(
        output.Answer(f"tag:{name} of {volume} is {where}.", {"volume": volume, **found}, names=[name]), form
    )


@tag.command("list")
@click.argument("volume")
@options.directory
@options.form
def list_(volume: str, directory: Path, form: str) -> exits.Exit:
    """Show the named moments."""
    tags = client.Control.of(directory).history(volume, "tags")["tags"]
    rows = [{"name": name, "position": position} for name, position in sorted(tags.items())]
    answer = output.Answer(
        f"{len(rows)} tags of {volume}.",
        {"volume": volume, "tags": rows},
        tables=[output.Table([output.Column("TAG", "name"), output.Column("POSITION", "position")], rows)],
        items=rows,
        names=[row["name"] for row in rows],
    )
    return output.show(answer, form)


@tag.command()
@click.argument("volume")
@click.argument("name")
@options.directory
@options.form
def drop(volume: str, name: str, directory: Path, form: str) -> exits.Exit:
    """Forget a name; the moment stays as long as the policy keeps it."""
    found = client.Control.of(directory).history(volume, f"tags/{name}", method="DELETE")
    return output.show(
        output.Answer(
            f"tag:{name} of {volume} is forgotten; it was {found['position']}.",
            {"volume": volume, **found},
            names=[name],
        ),
        form,
    )
