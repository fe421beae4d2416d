"""``dkctl cat``: one file as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from diffkeeper.domain import errors
from dkctl import client, exits, options, output, when

BLOCK_BYTES = 256 * 1024


@click.command()
@click.argument("volume")
@click.argument("path")
@click.option("--at", "at", type=when.WHEN, default="latest", show_default=True, help="Which moment.")
@options.directory
def cat(volume: str, path: str, at: str, directory: Path) -> exits.Exit:
    """Print the content of the file PATH of VOLUME as it was at a moment.

    WHEN is latest, a position (7.1042), a time with its zone, an age (5m), tag:NAME, branch:NAME, or before:WHEN.
    """
    control = client.Control.of(directory)
    query: client.Query = [("when", at), ("path", when.raw(path))]
    with control.history_stream(volume, "content", query) as response:
        position = response.headers.get("X-Diffkeeper-Position", "?")
        at_us = response.headers.get("X-Diffkeeper-At-Us")
        output.say(f"{path} of {volume} at {when.resolved(position, int(at_us) if at_us else None)}")
        expected, sent = int(response.headers.get("Content-Length") or 0), 0
        while block := response.read(BLOCK_BYTES):
            sys.stdout.buffer.write(block)
            sent += len(block)
    sys.stdout.buffer.flush()
    if sent != expected:
        raise errors.Transient(
            f"only {sent} of {expected} bytes came; what was printed is not the whole file",
            reason="stream-broken",
            hint="a damaged chunk ends it there: dkctl history names it",
        )
    return exits.Exit.DONE
