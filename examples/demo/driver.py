"""The story itself: up, run, load, kill, failover, load, check. It drives the product through ``dkctl``
and the orders' port only.
"""

from __future__ import annotations

import http.client
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from examples.demo import checker, injector, load, product, report, view

from diffkeeper import nats_server

VOLUME = "orders"
EAST, WEST = "east", "west"
DEPLOYMENT = "deployment"
WORKERS = 4
TICK_S = 0.1
STATUS_EVERY_S = 1.0
SERVICE_START_S = 20.0
FIRST_ORDER_S = 30.0
FOLLOW_S = 20.0
# The last thing before the kill is to look at the lag; the kill comes at a random instant of this span
# after it.
KILL_WITHIN_S = 0.05

ORDERS = Path(__file__).resolve().parent.parent / "orders" / "orders.py"


class Demo:
    """One telling. Leaving it ends the client and the terminal's side of ``dkctl run``, nothing of the
    deployment.
    """

    def __init__(self, place: Path, shown: view.View, seed: int, seconds: float) -> None:
        self.place = place
        self.deployment = place / DEPLOYMENT
        self.port = nats_server.free_port()
        self._view = shown
        self._chance = random.Random(seed)
        self._seconds = seconds
        self._dkctl = product.Dkctl(self.deployment)
        self._record = place / "client.jsonl"
        self._load = load.Load(self.port, self._record, WORKERS, seed)
        self._running: subprocess.Popen[bytes] | None = None
        self._story = report.Story()
        self._sites: list[dict[str, Any]] = []
        self._volume: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._load.stop()

    def play(self) -> report.Story:
        self._up()
        self._run()
        self._load_at_east()
        killed_us = self._kill()
        self._fail_over()
        self._load_at_west(killed_us)
        self._check()
        return self._story

    def _up(self) -> None:
        self._view.phase(f"two sites start: {EAST} and {WEST}")
        started = time.monotonic()
        status = self._dkctl.ask("up", "--detach", "--sites", f"{EAST},{WEST}")
        self._sites = status["sites"]
        processes = sum(len(site["processes"]) for site in self._sites)
        self._view.note(f"{processes} processes are up after {time.monotonic() - started:.1f} s")

    def _run(self) -> None:
        self._view.phase(f"the order service runs at {EAST}, durability remote")
        path = self.place / "orders-data"
        path.mkdir()
        command = [sys.executable, str(ORDERS), "--data", "{path}", "--port", str(self.port)]
        log = self.place / "orders.log"
        self._running = self._dkctl.run(VOLUME, EAST, path, log, command, ["--durability", "remote"])
        self._wait_for_service(log)
        volume = self._ask_volume()
        self._story.probe, self._story.fidelity = str(volume["probe"]), str(volume["fidelity"])
        if self._story.probe != "bpf":
            self._view.note("no rights for BPF here: the portable probe captures, with fidelity scan")
        self._view.note(f"captured by the {self._story.probe} probe; http://127.0.0.1:{self.port}")

    def _load_at_east(self) -> None:
        self._view.phase(f"{WORKERS} clients place orders")
        self._load.start()
        self._watch(self._seconds)

    def _kill(self) -> int:
        """Kill the site in the middle of the load; when, on the client's clock."""
        volume = self._ask_volume()
        self._story.lag_before_kill = view.lag_text(volume)
        time.sleep(self._chance.uniform(0, KILL_WITHIN_S))
        self._story.acknowledged_before_kill = self._load.counts().acknowledged
        killed_us = load.now_us()
        self._view.phase(f"SIGKILL to every process of {EAST}")
        injector.kill_site(self._dkctl, EAST)
        self._view.note(f"lag just before: {self._story.lag_before_kill}")
        return killed_us

    def _fail_over(self) -> None:
        self._view.phase(f"dkctl failover {VOLUME} --to {WEST} --durability site")
        # West is the last site standing: only its operator can say that it goes on without a second copy.
        operation = self._dkctl.ask("failover", VOLUME, "--to", WEST, "--yes", "--durability", "site")
        self._story.timings_ms = {name: ms for name, ms in operation["timings_ms"].items() if ms is not None}
        took = ", ".join(f"{name} {ms:.0f} ms" for name, ms in self._story.timings_ms.items())
        self._view.note(f"{WEST} leads in epoch {operation['epoch']}: {took}")

    def _load_at_west(self, killed_us: int) -> None:
        self._view.phase(f"the clients go on with {WEST}")
        deadline = time.monotonic() + FIRST_ORDER_S
        while (outage := self._load.outage_after(killed_us)) is None and time.monotonic() < deadline:
            time.sleep(TICK_S)
        if outage is None:
            self._view.note(f"no order was accepted within {FIRST_ORDER_S:g} s")
            return
        broke_us, back_us = outage
        self._story.kill_to_first_order_ms = (back_us - broke_us) / 1000
        self._view.note(f"first order accepted {self._story.kill_to_first_order_ms:.0f} ms after the kill")
        self._watch(self._seconds)

    def _check(self) -> None:
        self._load.stop()
        self._view.phase(f"{EAST} comes back and follows")
        self._dkctl.ask("up", "--site", EAST, codes=(0, 1))
        self._wait_until_followed()
        self._view.phase("the check")
        self._story.verification = self._dkctl.ask("verify", VOLUME, codes=(0, 1))
        self._view.note(str(self._story.verification["verdict"]))
        directory = Path(self._ask_volume()["path"])
        self._story.judgement = checker.check(self._record, directory)

    def _watch(self, seconds: float) -> None:
        """Show how the load goes for a while."""
        ends = time.monotonic() + seconds
        before, since = self._load.counts().acknowledged, time.monotonic()
        asked = 0.0
        while time.monotonic() < ends:
            if time.monotonic() - asked >= STATUS_EVERY_S:
                asked = time.monotonic()
                self._ask_status()
            self._show((self._load.counts().acknowledged - before) / max(1e-9, time.monotonic() - since))
            time.sleep(TICK_S)

    def _show(self, per_second: float) -> None:
        counts = self._load.counts()
        self._view.look(
            view.Look(counts.acknowledged, counts.unanswered, per_second, self._volume, self._sites)
        )

    def _ask_status(self) -> None:
        status = self._dkctl.ask("status", codes=(0, 1))
        self._sites = status["sites"]
        self._volume = next((one for one in status["volumes"] if one["volume"] == VOLUME), None)

    def _ask_volume(self) -> dict[str, Any]:
        self._volume = self._dkctl.ask("status", VOLUME, codes=(0, 1))
        return self._volume

    def _wait_until_followed(self) -> None:
        """Until east has applied all that west wrote, so that there are two copies to compare."""
        deadline = time.monotonic() + FOLLOW_S
        while True:
            self._ask_status()
            self._show(0)
            volume = self._volume
            assert volume is not None, "the volume is known since its first run"
            east = next(one for one in volume["sites"] if one["site"] == EAST)
            captured = (volume["positions"] or {}).get("captured")
            # Positions count on across epochs, and the load has stopped: equal means everything.
            if east["state"] == "following" and captured is not None and east["applied"] == captured:
                self._view.note(f"{EAST} has applied everything up to {east['applied']}")
                return
            if time.monotonic() > deadline:
                self._view.note(f"{EAST} did not catch up within {FOLLOW_S:g} s: {east}")
                return
            time.sleep(TICK_S)

    def _wait_for_service(self, log: Path) -> None:
        deadline = time.monotonic() + SERVICE_START_S
        assert self._running is not None, "started before it is waited for"
        while not answers(self.port):
            code = self._running.poll()
            if code is not None or time.monotonic() > deadline:
                raise product.DkctlFailed(("run", VOLUME), code if code is not None else -1, log.read_text())
            time.sleep(TICK_S)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
