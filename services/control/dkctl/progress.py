"""How the base of a volume comes along, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from dkctl import output

BAR_CELLS = 30
LINE_EVERY_S = 2.0


class BaseProgress:
    """Fed with what ``GET /v1/volumes/V`` says; prints only when the base takes long enough to be noticed."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = False
        self._said_at = time.monotonic()

    def show(self, volume: dict[str, Any]) -> None:
        base = volume.get("base")
        if not base:
            return
        if self._live:
            sys.stderr.write(f"\r\x1b[K{line(volume['volume'], base, bar=True)}")
            sys.stderr.flush()
            self._drawn = True
        elif time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._said_at = time.monotonic()
            output.say(line(volume["volume"], base, bar=False))

    def end(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def line(volume: str, base: dict[str, Any], *, bar: bool) -> str:
    done, total = base["bytes"], base.get("bytes_total") or 0
    part = min(1.0, done / total) if total else float(bool(base.get("done")))
    cells = round(part * BAR_CELLS)
    drawn = f" [{'#' * cells}{'.' * (BAR_CELLS - cells)}]" if bar else ""
    files = f"{base['files']}/{base.get('files_total') or '?'} files"
    return (
        f"base of {volume}{drawn} {part:4.0%}  {files}  {output.size(done)} of {output.size(total) or '?'}"
        + ("  waiting until it is safe" if base.get("done") else "")
    )
