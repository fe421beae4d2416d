"""``dkctl restore``: a moment into a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dkctl import client, exits, options, output, restoring, when

if TYPE_CHECKING:
    from dkctl.lazily import Lazily


@click.command()
@click.argument("volume")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--at", "at", type=when.WHEN, default="latest", show_default=True, help="Which moment.")
@click.option(
    "--to",
    "into",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new or empty directory. One that an earlier restore of the same left unfinished is gone on with.",
)
@click.option(
    "--lazy",
    is_flag=True,
    help="DIR can be used at once; what is touched comes first, the rest behind it. Linux 6.14 and root, "
    "else all of it is restored before this ends.",
)
@click.option("--force", is_flag=True, help="What is in DIR already is moved aside first, beside it.")
@options.directory
@options.form
def restore(
    volume: str,
    paths: tuple[str, ...],
    at: str,
    into: Path,
    lazy: bool,
    force: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Restore VOLUME, or only these paths of it, as it was at a moment; verified to the byte."""
    control, target = client.Control.of(directory), into.absolute()
    work = restoring.Restore(control, volume, target)
    chosen = [when.raw(path) for path in paths]
    why_not: str | None = None
    if lazy:
        from dkctl import lazily

        target.parent.mkdir(parents=True, exist_ok=True)
        why_not = lazily.why_not(target)
        if why_not is None:
            return _lazily(lazily.Lazily(control, directory, volume, target), work, at, chosen, force, form)
        output.say(f"all of it is restored before this ends: {why_not}")
    head = work.run(at, chosen, force=force)
    data = {
        "volume": volume,
        "position": head["position"],
        "at_us": head["at_us"],
        "to": str(into.absolute()),
        "files": head["files"],
        "bytes": head["bytes"],
        "left_out": work.left_out,
        "moved_aside": str(work.moved_aside) if work.moved_aside else None,
        "lazy": False,
        "why_not_lazy": why_not,
    }
    notes = [f"{count} times {cause} left out" for cause, count in work.left_out.items()]
    if work.moved_aside:
        notes.append(f"what was there is in {work.moved_aside}")
    answer = output.Answer(
        f"{into} holds {volume} at {when.resolved(head['position'], head['at_us'])}: {head['files']} files, "
        f"{output.size(head['bytes'])}, verified to the byte." + "".join(f" {note}." for note in notes),
        data,
        names=[str(head["position"])],
    )
    return output.show(answer, form)


def _lazily(
    work: Lazily, full: restoring.Restore, at: str, chosen: list[bytes], force: bool, form: str
) -> exits.Exit:
    asked = {"volume": work.volume, "at": at, "paths": [path.hex() for path in chosen]}
    if work.goes_on(asked, force=force):
        data = {"volume": work.volume, "to": str(work.target), "lazy": True, "filling": work.status()}
        return output.show(output.Answer(f"{work.target} is being filled already.", data), form)
    full.make_room(force=force)
    head = work.start(at, chosen, asked)
    data = {
        "volume": work.volume,
        "position": head["position"],
        "at_us": head["at_us"],
        "to": str(work.target),
        "files": head["files"],
        "bytes": head["bytes"],
        "left_out": head["left_out"],
        "moved_aside": str(full.moved_aside) if full.moved_aside else None,
        "lazy": True,
        "why_not_lazy": None,
        "took_ms": head["took_ms"],
    }
    answer = output.Answer(
        f"{work.target} can be used as {work.volume} at {when.resolved(head['position'], head['at_us'])}: "
        f"{head['files']} files, {output.size(head['bytes'])}, which come when they are touched and otherwise "
        "behind this.",
        data,
        names=[str(head["position"])],
    )
    return output.show(answer, form)
