"""Clients that write until they are stopped, and record what they heard.

A lost connection is opened again, so that a load goes on through a failover as a user's would.
"""

from __future__ import annotations

import random
import threading
import time
from types import TracebackType

from tests.victims import operations, victims

CLIENTS = 4
RECONNECT_S = 0.1
PAYLOAD_MAX_BYTES = 1500
# One in so many operations is sent only to be dropped by the program, so that *fail* is tested.
ABORT_ONE_IN = 10


class Load:
    """Use as a context: clients run inside it. ``prefix`` keeps the keys of several loads apart."""

    def __init__(
        self,
        victim: victims.Victim,
        history: operations.History,
        prefix: str,
        seed: int,
        pause_s: float = 0.0,
    ) -> None:
        self._victim = victim
        self._history = history
        self._stop = threading.Event()
        self._pause_s = pause_s
        self._threads = [
            threading.Thread(
                target=self._write, args=(f"{prefix}.{n}", random.Random(f"{seed}.{n}")), name=f"client-{n}"
            )
            for n in range(CLIENTS)
        ]
        self._failures: list[Exception] = []
        self.disconnected = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * victims.ANSWER_TIMEOUT_S)
            assert not thread.is_alive(), "a client ends after its operation"
        if self._failures:
            raise self._failures[0]

    def wait_for(self, acknowledged: int, timeout_s: float = 60.0) -> None:
        """Until so many operations more than now were acknowledged."""
        before = self._history.count(operations.Outcome.OK)
        victims.wait_until(
            f"{acknowledged} operations were acknowledged",
            lambda: (
                bool(self._failures) or self._history.count(operations.Outcome.OK) >= before + acknowledged
            ),
            timeout_s,
        )
        if self._failures:
            raise self._failures[0]

    def _write(self, prefix: str, rng: random.Random) -> None:
        try:
            self._write_until_stopped(prefix, rng)
        except Exception as failure:  # noqa: BLE001 (handed to the test's thread by __exit__)
            self._failures.append(failure)

    def _write_until_stopped(self, prefix: str, rng: random.Random) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                client = self._victim.connect()
            except OSError:
                self._stop.wait(RECONNECT_S)
                continue
            try:
                while not self._stop.is_set():
                    number += 1
                    if not self._one(client, f"{prefix}.{number}", rng):
                        self.disconnected += 1
                        # The listening socket of a killed program may close after its connections.
                        self._stop.wait(RECONNECT_S)
                        break
                    if self._pause_s:
                        time.sleep(rng.random() * self._pause_s)
            finally:
                client.close()

    def _one(self, client: victims.Client, key: str, rng: random.Random) -> bool:
        """One operation, recorded; False when the connection is gone."""
        payload = rng.randbytes(rng.randint(1, PAYLOAD_MAX_BYTES))
        send = client.abort if rng.randrange(ABORT_ONE_IN) == 0 else client.put
        start_us = operations.now_us()
        outcome = operations.Outcome.OK
        try:
            send(key, payload)
        except victims.RejectedError:
            outcome = operations.Outcome.FAIL
        except OSError:
            outcome = operations.Outcome.UNKNOWN
        self._history.add(
            operations.Operation(key, operations.digest(payload), start_us, operations.now_us(), outcome)
        )
        return outcome is not operations.Outcome.UNKNOWN
