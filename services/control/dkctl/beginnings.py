"""``dkctl run --from VOLUME@WHEN``: the directory that a program begins with."""

from __future__ import annotations

from pathlib import Path

import click

from diffkeeper.domain import errors, moments
from dkctl import client, lazily, output, when


def lay(control: client.Control, directory: Path, volume: str, path: Path | None, begin_from: str) -> None:
    """Put the moment into ``path``, lazily where this machine can do that and whole where it cannot."""
    source, at = _parsed(begin_from)
    if path is None:
        raise click.UsageError("--from needs --path DIR, a new or empty directory.")
    target = path.absolute()
    _check_free_name(control, volume)
    work = lazily.Lazily(control, directory, source, target)
    asked = {"volume": source, "at": at, "run": volume}
    if work.goes_on(asked):
        return
    when.need_free(target, "name a new or empty directory with --path")
    target.parent.mkdir(parents=True, exist_ok=True)
    why_not = lazily.why_not(target)
    if why_not is not None:
        output.say(f"all of {source} is restored before the program starts: {why_not}")
        head = when.fill(control, source, target, [("when", at)])
    else:
        head = work.start(at, [], asked)
    output.say(f"beginning with {source} at {when.resolved(head['position'], head['at_us'])} in {target}")


def _parsed(text: str) -> tuple[str, str]:
    source, sign, at = text.partition("@")
    if not sign or not source:
        raise click.UsageError("--from wants VOLUME@WHEN, for example orders@5m.")
    try:
        moments.parse(at)
    except errors.Refused as error:
        raise click.UsageError(f"--from: {error.message}; it can be {error.hint}") from error
    return source, at


def _check_free_name(control: client.Control, volume: str) -> None:
    """A volume that is known has a directory of its own, which nothing is laid over."""
    try:
        known = control.volume(volume)
    except errors.NotFound:
        return
    raise errors.Refused(
        f"there is a volume {volume} already, in {known.get('path')}; nothing was touched",
        reason="volume-known",
        hint=f"give the run a new name, or take {volume} itself back with dkctl rollback",
    )
