"""``python -m examples.demo``: a volume outlives its site.

Two sites on this machine; an order service at one, captured and replicated; a client that remembers what
was acknowledged; SIGKILL to everything of that site; failover; and the proof. Exit code 0 only when every
check holds; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from examples.demo import cleanup, driver, product, report, view


class Interrupts:
    """The first signal raises KeyboardInterrupt where the demo stands; from then on, or once closed, none
    does.
    """

    def __init__(self) -> None:
        self._open = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def close(self) -> None:
        self._open = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._open:
            self._open = False
            raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    interrupts = Interrupts()
    place: Path | None = None
    try:
        try:
            place = Path(tempfile.mkdtemp(prefix="dk-demo-", dir=options.dir))
            return tell(place, options)
        except KeyboardInterrupt:
            print("interrupted: putting everything away", file=sys.stderr, flush=True)
            options.keep = False
            return 130
        except product.DkctlFailed as error:
            print(f"demo: {error}", file=sys.stderr, flush=True)
            return 1
        finally:
            # Cannot raise twice: should a signal come right here, the outer block still runs.
            interrupts.close()
    finally:
        if place is not None and not options.keep:
            put_away(place)


def tell(place: Path, options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    with view.open_view() as shown:
        shown.note(f"everything is below {place}; seed {seed}")
        with driver.Demo(place, shown, seed, options.seconds) as demo:
            story = demo.play()
    print("\n".join(report.lines(story)), flush=True)
    if options.keep:
        print("\n".join(what_to_try(demo)), flush=True)
    return 0 if story.ok else 1


def what_to_try(demo: driver.Demo) -> list[str]:
    where = f"--dir {demo.deployment}"
    return [
        "",
        f"The deployment still runs, and the order service at http://127.0.0.1:{demo.port}. Try:",
        f"  dkctl status {where}",
        f"  dkctl log {driver.VOLUME} {where}",
        f"  curl -s http://127.0.0.1:{demo.port}/healthz",
        f"  dkctl failover {driver.VOLUME} --to {driver.EAST} {where}",
        f"  dkctl down {where} && rm -r {demo.place}",
    ]


def put_away(place: Path) -> None:
    deployment = place / driver.DEPLOYMENT
    cleanup.stop(deployment)
    for line in cleanup.sweep(place):
        print(f"demo: had to be killed: {line}", file=sys.stderr, flush=True)
    cleanup.remove(place)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="A volume outlives its site.")
    parser.add_argument("--keep", action="store_true", help="leave the deployment up and say what to try")
    parser.add_argument("--seed", type=int, help="of what the client orders and when the site is killed")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load on each side of the kill (8)")
    parser.add_argument("--dir", type=Path, help="where the demo makes its directory (the temporary one)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
