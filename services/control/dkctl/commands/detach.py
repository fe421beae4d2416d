"""``dkctl detach``: end the capture of an attached directory."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, exits, options, output


@click.command()
@click.argument("volume")
@options.directory
@options.form
def detach(volume: str, directory: Path, form: str) -> exits.Exit:
    """End the capture of VOLUME; its log and replicas stay."""
    ended = client.Control.of(directory).detach(volume)
    verdict = f"Capture of {volume} ended at position {ended['position']}; its log and replicas stay."
    return output.show(output.Answer(verdict, ended, names=[volume]), form)
