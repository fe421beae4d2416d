"""``dkctl version``: what is installed here."""

from __future__ import annotations

import platform

import click

from dkctl import exits, options, output


@click.command()
@options.form
def version(form: str) -> exits.Exit:
    """Print the version of DiffKeeper, Python and the kernel."""
    data = {
        "version": diffkeeper_version(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }
    verdict = "diffkeeper {version} (Python {python}, Linux {kernel}, {machine})".format(**data)
    return output.show(output.Answer(verdict, data, names=[data["version"]]), form)


def diffkeeper_version() -> str:
    # Costs 20 ms to import, so only here.
    from importlib import metadata

    try:
        return metadata.version("diffkeeper")
    except metadata.PackageNotFoundError:
        return "0+source"
