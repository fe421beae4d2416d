"""What a deployment's directory says about it: where control listens, and the token that opens it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkeeper.domain import errors

RECORD = "deployment.json"
TOKEN = "token"
CONTROL_LOG = Path("logs") / "control.log"


@dataclass(frozen=True, slots=True)
class Deployment:
    directory: Path
    # http://host:port
    address: str
    token: str
    record: dict[str, Any]


def find(directory: Path) -> Deployment | None:
    """The deployment below ``directory``, running or not; None when there is none.

    Raises Unauthorised when it may not be read and Corrupt when it makes no sense.
    """
    try:
        record = json.loads((directory / RECORD).read_text("utf-8"))
        token = (directory / TOKEN).read_text("utf-8").strip()
        address = record["control"]["address"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise errors.Unauthorised(
            f"the deployment in {directory} belongs to another user; nothing was asked of it",
            reason="not-your-deployment",
            hint=f"run this as the owner of {error.filename}",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise errors.Corrupt(
            f"{directory / RECORD} cannot be read ({error!r}); it was left as it is",
            reason="malformed-deployment",
            hint="dkctl up --dir DIR writes it anew",
        ) from error
    return Deployment(directory, str(address), token, record)


def need(directory: Path) -> Deployment:
    found = find(directory)
    if found is None:
        raise errors.NotFound(
            f"there is no deployment in {directory}",
            reason="no-deployment",
            hint=f"dkctl up --detach --dir {directory}, or name another with --dir or $DIFFKEEPER_DIR",
        )
    return found
