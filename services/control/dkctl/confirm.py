"""The danger ladder: what moves traffic asks, what may lose data wants the name typed.

Without a terminal only flags answer. Questions go to stderr, so that an answer can be piped while a person
is asked.
"""

from __future__ import annotations

import sys

import click

from diffkeeper.domain import errors
from dkctl import output


def traffic(statement: str, *, yes: bool) -> None:
    """Ask y/N before traffic moves; raises Refused when the answer is not yes or nobody can be asked."""
    output.say(statement)
    if yes:
        return
    _need_terminal("--yes says yes beforehand")
    if not click.confirm("Go on?", default=False, err=True):
        raise _unconfirmed("answered no")


def loss(statement: str, name: str, *, accepted: bool) -> None:
    """Have ``name`` typed before data may be lost; raises Refused as ``traffic`` does."""
    output.say(statement)
    if accepted:
        return
    _need_terminal("--accept-loss accepts the loss that is stated")
    typed = click.prompt(f"Type {name} to accept this loss", default="", show_default=False, err=True)
    if typed.strip() != name:
        raise _unconfirmed("the name was not typed")


def _need_terminal(hint: str) -> None:
    if not sys.stdin.isatty():
        raise errors.Refused(
            "this needs a confirmation and there is no terminal to ask on; nothing was changed",
            reason="no-confirmation",
            hint=hint,
        )


def _unconfirmed(why: str) -> errors.Refused:
    return errors.Refused("not confirmed; nothing was changed", reason="no-confirmation", hint="", answer=why)
