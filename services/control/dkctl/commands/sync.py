"""``dkctl sync``: wait for, and print, the receipt of everything written so far."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, exits, options, output


@click.command()
@click.argument("volume")
@click.option(
    "--level",
    type=click.Choice(["observe", "site", "remote"]),
    default="remote",
    show_default=True,
    help="How safe it must be.",
)
@options.timeout(30.0)
@options.directory
@options.form
def sync(volume: str, level: str, timeout_s: float, directory: Path, form: str) -> exits.Exit:
    """Wait until everything written to VOLUME so far is safe at a level, and print the receipt."""
    receipt = client.Control.of(directory).sync(volume, level, timeout_s)
    holders = [str(holder) for holder in receipt["holders"]]
    answer = output.Answer(
        f"Everything written to {volume} until now is safe at level {receipt['level']}, "
        f"up to position {receipt['position']}.",
        receipt,
        tables=[
            output.Table(
                [
                    output.Column("VOLUME", "volume"),
                    output.Column("POSITION", "position"),
                    output.Column("LEVEL", "level"),
                    output.Column("HELD BY", "holders"),
                    output.Column("HASH", "hash", wide=True),
                ],
                [receipt | {"holders": ", ".join(holders)}],
            )
        ],
        names=[str(receipt["position"])],
    )
    return output.show(answer, form)
