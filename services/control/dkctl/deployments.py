"""What a deployment's directory says about it: where control listens, and the token that opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkeeper.domain import errors

NOTE = "deployment.json"
TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the note has it; ``start_ticks`` tells it from a stranger that took its number."""

    name: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Deployment:
    directory: Path
    # http://host:port of the last control, which may be gone; None when it never came that far.
    address: str | None
    control_pid: int | None
    token: str
    note: dict[str, Any]

    @property
    def repair_address(self) -> str | None:
        """Where the repair service listens; None in a deployment without storage nodes."""
        storage = self.note.get("storage")
        return f"http://127.0.0.1:{storage['repair_port']}" if storage else None

    def processes(self) -> Iterator[Process]:
        """Control first, then each site's and those of the storage, as last noted."""
        control = self.note.get("control")
        if control:
            yield Process("control", control["pid"], control["start_ticks"])
        door = (self.note.get("door") or {}).get("process")
        if door:
            yield Process("front doors", door["pid"], door["start_ticks"])
        for site, facts in self.note["sites"].items():
            for name, process in facts["processes"].items():
                yield Process(f"{name} of {site}", process["pid"], process["start_ticks"])
        storage = self.note.get("storage") or {"nodes": {}, "repair": None}
        noted = [
            ("repair", storage["repair"]),
            *((name, node["process"]) for name, node in storage["nodes"].items()),
        ]
        for name, process in noted:
            if process is not None:
                yield Process(name, process["pid"], process["start_ticks"])


def find(directory: Path) -> Deployment | None:
    """The deployment below ``directory``, running or not; None when there is none.

    Raises Unauthorised when it may not be read and Corrupt when it makes no sense.
    """
    try:
        note = json.loads((directory / NOTE).read_text("utf-8"))
        token = (directory / TOKEN).read_text("utf-8").strip()
        control = note["control"] or {}
        address, pid = control.get("address"), control.get("pid")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise errors.Unauthorised(
            f"the deployment in {directory} belongs to another user; nothing was asked of it",
            reason="not-your-deployment",
            hint=f"run this as the owner of {error.filename}",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Corrupt(
            f"{directory / NOTE} cannot be read ({error!r}); it was left as it is",
            reason="malformed-deployment",
            hint="restore the file, or give another --dir",
        ) from error
    return Deployment(directory, address, pid, token, note)


def need(directory: Path) -> Deployment:
    found = find(directory)
    if found is None:
        raise errors.NotFound(
            f"there is no deployment in {directory}",
            reason="no-deployment",
            hint=f"dkctl up --detach --dir {directory}, or name another with --dir or $DIFFKEEPER_DIR",
        )
    return found
