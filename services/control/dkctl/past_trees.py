"""The directories that a deployment fills from its past, across its stop and its next start."""

from __future__ import annotations

import json
from pathlib import Path

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from dkctl import output

# In the deployment's directory: what ``dkctl down`` closed, and ``dkctl up`` goes on with.
_CLOSED = "closed-fillings.json"


def stop(directory: Path) -> tuple[list[str], list[str]]:
    """End what fills directories from this deployment: those that ended, and those that something uses, which go on."""
    from diffkeeper.lazy import fillings, trees

    ended, left, goes_on = [], [], []
    for target in fillings.shown():
        if not fillings.is_of(target, directory):
            continue
        if not fillings.stop(target):
            left.append(str(target))
            continue
        ended.append(str(target))
        # A branch's asks a site, which starts it again when it knows its own address.
        if trees.begun(target) is not None and not target.is_relative_to(directory):
            goes_on.append(str(target))
    if goes_on:
        known = _closed(directory)
        atomic_files.write_json(directory / _CLOSED, sorted({*known, *goes_on}))
    return ended, left


def go_on(directory: Path) -> None:
    """Before anything else starts: programs find their directories where they were."""
    targets = _closed(directory)
    if not targets:
        return
    from diffkeeper.lazy import going_on

    for target in targets:
        try:
            if going_on.resume(Path(target)):
                output.say(f"going on with filling {target}")
        except (errors.DiffKeeperError, OSError) as error:
            output.say(f"{target} is not filled any further: {error}")
    (directory / _CLOSED).unlink(missing_ok=True)


def _closed(directory: Path) -> list[str]:
    try:
        found: list[str] = json.loads((directory / _CLOSED).read_text())
    except FileNotFoundError:
        return []
    return found
