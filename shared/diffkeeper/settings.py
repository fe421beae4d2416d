"""A daemon's settings: one JSON file, read once at start into a ``msgspec.Struct``, every mistake named.

Secrets are not settings: a setting may name the file that holds one, and ``read_token`` reads it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TypeVar

import msgspec

from diffkeeper.domain import errors

_UNKNOWN = re.compile(r"unknown field `([^`]*)`")

T = TypeVar("T", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every daemon's settings: a key nobody reads is an error, not a silence."""


def load(path: Path, kind: type[T]) -> T:
    """The settings in the JSON file at ``path``; raises Misconfigured for whatever is wrong with them."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise errors.Misconfigured(
            f"the settings file {path} cannot be read: {error.strerror}",
            reason="settings-unreadable",
            hint="check the path given with --config",
            path=path,
        ) from error
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise errors.Misconfigured(
            f"the settings file {path} is wrong: {error}",
            reason="bad-settings",
            hint=_suggest(str(error), kind),
            path=path,
        ) from error


def read_token(path: Path) -> str:
    """The bearer token in a file; raises Misconfigured when there is none."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.Misconfigured(
            f"the token file {path} cannot be read: {error}", reason="token-unreadable", path=path
        ) from error
    if not token:
        raise errors.Misconfigured(f"the token file {path} is empty", reason="token-empty", path=path)
    return token


def _suggest(message: str, kind: type[msgspec.Struct]) -> str:
    unknown = _UNKNOWN.search(message)
    known = list(kind.__struct_encode_fields__)
    if unknown is None:
        return f"the known keys are {', '.join(known)}"
    near = difflib.get_close_matches(unknown[1], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the known keys are {', '.join(known)}"
