"""The options that commands share, and the directory of the deployment they talk to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dkctl import output

DIR_VARIABLE = "DIFFKEEPER_DIR"

F = TypeVar("F", bound=Callable[..., Any])


def default_dir() -> Path:
    """The place for state that the XDG base directory specification gives to a program of this user."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path there is to be ignored.
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "diffkeeper"


def directory(function: F) -> F:
    """``--dir``: which deployment."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=DIR_VARIABLE,
        default=default_dir,
        show_default="$XDG_STATE_HOME/diffkeeper, else ~/.local/state/diffkeeper",
        show_envvar=True,
        help="Directory of the deployment.",
    )(function)


def _json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(dict)["json"] = True


def form(function: F) -> F:
    """``-o FORMAT`` and its short form ``--json``; the command gets ``form``."""
    function = click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(output.FORMATS),
        default="table",
        show_default=True,
        callback=lambda context, _parameter, value: (
            "json" if context.ensure_object(dict).get("json") else value
        ),
        help="How the answer is printed.",
    )(function)
    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=_json, help="Short for -o json."
    )(function)


def timeout(default_s: float) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait before giving up (exit code 8).",
    )
