"""Starting a process in a network namespace that has a name (``ip netns add NAME``): a site of its own on one machine.

Only the network is another one; files, Unix sockets on paths, process numbers and the kernel's tracing are those of everybody.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from diffkeeper.domain import errors

FOLDER = Path("/run/netns")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def inside(namespace: str | None, argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` in a namespace, under the process number it is started with; ``argv`` itself for None.

    Raises Misconfigured when there is no such namespace now.
    """
    if namespace is None:
        return list(argv)
    assert is_name(namespace), "names are checked where they come in"
    path = FOLDER / namespace
    enter = shutil.which("nsenter")
    if enter is None:
        raise errors.Misconfigured(
            "no nsenter was found, which starts a process in a network namespace",
            reason="no-nsenter",
            hint="install util-linux",
        )
    if not path.exists():
        raise errors.Misconfigured(
            f"there is no network namespace {namespace}; nothing was started in it",
            reason="no-network-namespace",
            hint=f"ip netns add {namespace}, with the address that the site was given",
            path=path,
        )
    return [enter, f"--net={path}", "--", *argv]
