"""``dkctl attach``: capture a directory without wrapping the program that writes it."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import capturing, client, exits, options, output


@click.command()
@click.argument("volume")
@capturing.options
@options.directory
@options.form
def attach(
    volume: str,
    site: str,
    path: Path | None,
    durability: str,
    policy: str,
    mode: str,
    probe: str,
    no_wait: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Capture a directory as VOLUME, whoever writes it.

    Without `dkctl run` nothing holds the program's fsync back, so no write waits for its receipt: `dkctl
    sync` gives one.
    """
    control = client.Control.of(directory)
    ready = control.attach(volume, capturing.body(site, path, durability, policy, mode, probe))
    state = ready["volume"] if no_wait else capturing.wait_until_ready(control, ready["volume"])
    verdict = f"{ready['path']} is captured as {volume} at {site}" + (
        "; its base is still on the way." if not state["ready"] else "; what was there is safe."
    )
    answer = output.Answer(
        verdict,
        state,
        names=[f"volume/{volume}"],
        hints=[
            f"dkctl status {state['volume']}",
            f"dkctl sync {state['volume']}",
            f"dkctl detach {state['volume']}",
        ],
    )
    return output.show(answer, form)
