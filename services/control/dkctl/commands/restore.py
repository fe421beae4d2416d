"""``dkctl restore``: a moment into a directory."""

from __future__ import annotations

from pathlib import Path

import click

from dkctl import client, exits, options, output, restoring, when


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
@click.option("--force", is_flag=True, help="What is in DIR already is moved aside first, beside it.")
@options.directory
@options.form
def restore(
    volume: str, paths: tuple[str, ...], at: str, into: Path, force: bool, directory: Path, form: str
) -> exits.Exit:
    """Restore VOLUME, or only these paths of it, as it was at a moment; verified to the byte."""
    work = restoring.Restore(client.Control.of(directory), volume, into.absolute())
    head = work.run(at, [when.raw(path) for path in paths], force=force)
    data = {
        "volume": volume,
        "position": head["position"],
        "at_us": head["at_us"],
        "to": str(into.absolute()),
        "files": head["files"],
        "bytes": head["bytes"],
        "left_out": work.left_out,
        "moved_aside": str(work.moved_aside) if work.moved_aside else None,
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
