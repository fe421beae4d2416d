"""``dkctl manifests``: what to apply to a Kubernetes cluster."""

from __future__ import annotations

import click

from dkctl import exits, manifests


@click.command("manifests")
@click.argument("overlay", required=False)
@click.option("--tag", metavar="TAG", help="Tag of DiffKeeper's own images, instead of that of this release.")
def print_manifests(overlay: str | None, tag: str | None) -> exits.Exit:
    """Print the manifests of an OVERLAY for kubectl apply -f -; without one, the names of the overlays."""
    if overlay is None:
        for name in manifests.overlays():
            click.echo(name)
    else:
        click.echo(manifests.render(overlay, tag), nl=False)
    return exits.Exit.DONE
