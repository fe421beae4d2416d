"""WHEN and paths on the command line, and streams of changes on their way into a directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from diffkeeper import changes
from diffkeeper.changes import Change
from diffkeeper.domain import errors, moments
from dkctl import client, output

BAR_CELLS = 30
_DRAW_EVERY_S = 0.1


class WhenType(click.ParamType[str]):
    """Checked here, so that a slip costs no round trip; resolved where the history is."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            moments.parse(str(value))
        except errors.Refused as error:
            self.fail(f"{error.message}; it can be {error.hint}", param, ctx)
        return str(value)


WHEN = WhenType()


def raw(path: str) -> bytes:
    """A path inside a volume as its bytes, without the slashes people put around it."""
    return os.fsencode(path).strip(b"/")


def resolved(position: str, at_us: int | None) -> str:
    return f"{position} ({output.moment(at_us)})"


def open_stream(response: Any) -> tuple[dict[str, Any], Iterator[Change]]:
    """The facts at the head of a stream of changes, and what follows."""
    stream = changes.read(response)
    word, *facts = next(stream)
    if word != "head":
        raise errors.Corrupt("a stream of changes has no head", reason="malformed-stream")
    return facts[0], stream


class Bar:
    """How far a stream has come, on stderr, where that is a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._live = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._began = time.monotonic()
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self._live and now - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = now
            part = min(1.0, self.done / self._total) if self._total else 1.0
            cells = round(part * BAR_CELLS)
            rate = output.size(int(self.done / max(0.001, now - self._began)))
            sys.stderr.write(
                f"\r\x1b[K{self._what} [{'#' * cells}{'.' * (BAR_CELLS - cells)}] {part:4.0%}  "
                f"{output.size(self.done)} of {output.size(self._total)}  {rate}/s"
            )
            sys.stderr.flush()

    def end(self) -> None:
        if self._live and self._drawn_at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def counted(stream: Iterable[Change], bar: Bar) -> Iterator[Change]:
    for change in stream:
        yield change
        if change[0] == "write":
            bar.add(len(change[3]))
    bar.end()


def is_free(path: Path) -> bool:
    """Whether a directory may be filled: it is missing or empty. Raises Refused for what is no directory."""
    try:
        return not os.listdir(path)
    except FileNotFoundError:
        return True
    except NotADirectoryError as error:
        raise errors.Refused(
            f"{path} is not a directory", reason="target-not-directory", hint="name another one with --to"
        ) from error


def need_free(path: Path, hint: str) -> None:
    if not is_free(path):
        raise errors.Refused(
            f"{path} is not empty; nothing in it was touched", reason="target-not-empty", hint=hint
        )


def fill(control: client.Control, volume: str, into: Path, query: client.Query) -> dict[str, Any]:
    """A moment into an empty directory, verified file by file; the facts of the stream."""
    from diffkeeper.directory_writer import DirectoryWriter

    into.mkdir(parents=True, exist_ok=True)
    with control.history_stream(volume, "restore", query) as response, DirectoryWriter(into) as writer:
        head, stream = open_stream(response)
        for change in stream:
            writer.do(change)
    return head
