"""``dkctl mount``: a moment of a volume to look at, read-only, at once."""

from __future__ import annotations

from pathlib import Path

import click

from diffkeeper.domain import errors
from dkctl import client, exits, options, output, when


@click.command()
@click.argument("volume")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--at", "at", type=when.WHEN, help="Which moment.  [default: latest]")
@click.option("--ago", "ago", type=when.WHEN, metavar="AGE", help="The same as an age, such as 5m.")
@options.directory
@options.form
def mount(
    volume: str, target: Path, at: str | None, ago: str | None, directory: Path, form: str
) -> exits.Exit:
    """Show VOLUME as it was at a moment in DIR, a new or empty directory; nothing can be written there.

    Only what is read is fetched. umount DIR ends it. It needs root and Linux 6.14.
    """
    from dkctl import lazily

    if at is not None and ago is not None:
        raise click.UsageError("--at and --ago are two words for one thing; give one.")
    target = target.absolute()
    wanted = at or ago or "latest"
    work = lazily.Lazily(client.Control.of(directory), directory, volume, target)
    if work.goes_on({"volume": volume, "mounted": wanted}):
        raise errors.Refused(
            f"{volume} is mounted at {target} already",
            reason="already-mounted",
            hint=f"umount {target} ends that",
        )
    when.need_free(target, "name another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    why_not = lazily.why_not(target)
    if why_not is not None:
        raise errors.Refused(
            f"nothing can be mounted at {target}: {why_not}",
            reason="not-lazy",
            hint=f"dkctl restore {volume} --at {wanted} --to DIR copies it",
        )
    asked = {"volume": volume, "mounted": wanted}
    head = work.start(wanted, [], asked, background=False, read_only=True, temporary=True)
    data = {
        "volume": volume,
        "position": head["position"],
        "at_us": head["at_us"],
        "to": str(target),
        "files": head["files"],
        "bytes": head["bytes"],
        "took_ms": head["took_ms"],
    }
    answer = output.Answer(
        f"{target} shows {volume} at {when.resolved(head['position'], head['at_us'])}, read-only: "
        f"{head['files']} files, {output.size(head['bytes'])}. End it with: umount {target}",
        data,
        names=[str(target)],
    )
    return output.show(answer, form)
