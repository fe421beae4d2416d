"""What one sees of the demo: a live picture on a terminal, a plain log elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

PLAIN_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """How things stand at one moment. ``volume`` and ``sites`` are what ``dkctl status`` said last."""

    acknowledged: int
    unanswered: int
    per_second: float
    volume: dict[str, Any] | None
    sites: list[dict[str, Any]]


class View(Protocol):
    def phase(self, text: str) -> None:
        """A new part of the story begins."""

    def note(self, text: str) -> None:
        """Something happened in it."""

    def look(self, look: Look) -> None: ...


@contextmanager
def open_view() -> Iterator[View]:
    if sys.stdout.isatty():
        with _live_view() as view:
            yield view
    else:
        yield PlainView()


class PlainView:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._looked = 0.0

    def phase(self, text: str) -> None:
        self._say(f"== {text}")

    def note(self, text: str) -> None:
        self._say(f"   {text}")

    def look(self, look: Look) -> None:
        if time.monotonic() - self._looked >= PLAIN_EVERY_S:
            self._looked = time.monotonic()
            lag = f", lag {lag_text(look.volume)}" if look.volume else ""
            self._say(
                f"   {look.acknowledged} orders acknowledged ({look.per_second:.0f}/s), "
                f"{look.unanswered} attempts unanswered{lag}"
            )

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:5.1f} s] {text}", flush=True)


@contextmanager
def _live_view() -> Iterator[View]:
    # Only here: a demo in a pipe does not wait for it.
    from rich.live import Live

    view = LiveView()
    with Live(get_renderable=view.picture, refresh_per_second=8) as live:
        view.log = live.console.print
        yield view


class LiveView:
    """Phases and notes scroll by above; the picture below is redrawn."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phase = "starting"
        self._look: Look | None = None
        self.log: Any = print

    def phase(self, text: str) -> None:
        self._phase = text
        self.log(f"[bold cyan]{self._clock()}[/]  [bold]{text}[/]")

    def note(self, text: str) -> None:
        from rich.markup import escape

        self.log(f"[dim]{self._clock()}[/]    {escape(text)}")

    def look(self, look: Look) -> None:
        self._look = look

    def picture(self) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table

        look = self._look
        if look is None:
            return Panel(self._phase, title=f"DiffKeeper demo  {self._clock()}", border_style="cyan")
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row(
            "orders acknowledged", f"[bold]{look.acknowledged}[/]", f"{look.per_second:.0f} a second"
        )
        numbers.add_row("attempts unanswered", str(look.unanswered), "")
        if look.volume is not None:
            numbers.add_row("leader", str(look.volume.get("leader")), f"epoch {look.volume.get('epoch')}")
            numbers.add_row("replica behind by", lag_text(look.volume), str(look.volume.get("state")))
        sites = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("SITE", "STATE", "LEADS", "PROCESSES"):
            sites.add_column(title)
        for site in look.sites:
            colour = "green" if site["state"] == "alive" else "red"
            running = [process["name"] for process in site["processes"] if process["state"] == "running"]
            sites.add_row(
                site["site"],
                f"[{colour}]{site['state']}[/]",
                ", ".join(site["leads"]),
                ", ".join(running) or "none",
            )
        return Panel(
            Group(numbers, "", sites),
            title=f"{self._phase}  {self._clock()}",
            title_align="left",
            border_style="cyan",
        )

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:5.1f} s"


def lag_text(volume: dict[str, Any] | None) -> str:
    lag = (volume or {}).get("lag") or {}
    if lag.get("frames") is None:
        return "unknown"
    age = f" (measured {lag['age_ms']:.0f} ms ago)" if lag.get("age_ms") is not None else ""
    return f"{lag['frames']} frames, {lag['bytes']} bytes, {lag['ms']:.0f} ms{age}"
