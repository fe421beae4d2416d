"""``dkctl replay``: what a program wrote, again, at the pace one likes."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dkctl import client, exits, options, output, when


@click.command()
@click.argument("volume")
@click.option("--from", "from_", type=when.WHEN, required=True, help="Where to begin.")
@click.option("--to", "to", type=when.WHEN, default="latest", show_default=True, help="Where to end.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How many times faster than it happened; 0 is as fast as it goes.",
)
@click.option(
    "--to-dir", "into", required=True, type=click.Path(path_type=Path), help="A new or empty directory."
)
@click.option("-v", "--verbose", is_flag=True, help="Tell each change on stderr.")
@options.directory
@options.form
def replay(
    volume: str,
    from_: str,
    to: str,
    speed: float,
    into: Path,
    verbose: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Replay the writes to VOLUME between two moments into a directory, in their order and time."""
    from diffkeeper.directory_writer import DirectoryWriter

    into = into.absolute()
    when.need_free(into, "name an empty directory with --to-dir")
    into.mkdir(parents=True, exist_ok=True)
    control, done, started = client.Control.of(directory), 0, time.monotonic()
    first_us: int | None = None
    query = [("from", from_), ("to", to)]
    with control.history_stream(volume, "replay", query) as response, DirectoryWriter(into) as writer:
        head, stream = when.open_stream(response)
        output.say(
            f"replaying {volume} from {when.resolved(head['from'], head['from_us'])} to "
            f"{when.resolved(head['position'], head['at_us'])}"
        )
        for change in stream:
            if change[0] == "at":
                if first_us is None:
                    first_us, started = change[2], time.monotonic()
                elif speed:
                    wait = started + (change[2] - first_us) / 1e6 / speed - time.monotonic()
                    time.sleep(max(0.0, wait))
                continue
            writer.do(change)
            done += first_us is not None
            if verbose and first_us is not None:
                output.say(told(change))
    data = {
        "volume": volume,
        "from": head["from"],
        "position": head["position"],
        "changes": done,
        "to": str(into),
    }
    return output.show(
        output.Answer(
            f"{into} holds {volume} at {when.resolved(head['position'], head['at_us'])}, {done} changes after "
            f"{head['from']}.",
            data,
            names=[head["position"]],
        ),
        form,
    )


def told(change: tuple[object, ...]) -> str:
    word, *rest = change
    shown = [
        part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else str(part) for part in rest
    ]
    if word == "write":
        data = rest[2]
        shown[2] = f"{len(data) if isinstance(data, bytes) else 0} bytes"
    return f"  {word} {' '.join(shown)}"
