"""A client that places orders, writes down what became of each, and goes on until it is stopped.

It knows the orders' HTTP port and nothing else. An order that got no answer is sent again under the same
id until it is answered, as a careful client does; every attempt is written down, so that a checker can
judge without asking the client.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from examples.demo import records

ITEMS = ("tea", "coffee", "cocoa", "bread", "butter", "jam", "honey", "salt")
# Longer than any pause of a healthy service, so that a stopped one is not taken for slow.
ANSWER_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Counts:
    acknowledged: int
    unanswered: int  # attempts, not orders


class Load:
    """Some workers, each placing one order after the other."""

    def __init__(self, port: int, record: Path, workers: int, seed: int) -> None:
        self._port = port
        self._record = record.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # When each attempt ended that was not acknowledged.
        self._broke: list[int] = []
        # (start, end) of each acknowledged attempt, in the order of their answers.
        self._oks: list[tuple[int, int]] = []
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(
                target=self._work, args=(worker, random.Random(f"{seed}-{worker}")), name=f"load-{worker}"
            )
            for worker in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each worker finish its attempt; an order that is unanswered then stays unknown. Again is
        harmless.
        """
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._record.close()

    def counts(self) -> Counts:
        """How it goes; raises what ended a worker."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            return Counts(len(self._oks), len(self._broke))

    def outage_after(self, since_us: int) -> tuple[int, int] | None:
        """From the first attempt that failed after ``since_us`` to the first acknowledged one sent later.

        None while the service has not failed, or not come back.
        """
        self.counts()
        with self._lock:
            broke = next((at for at in self._broke if at >= since_us), None)
            if broke is None:
                return None
            back = next((end for start, end in self._oks if start >= broke), None)
            return None if back is None else (broke, back)

    def _work(self, worker: int, chance: random.Random) -> None:
        client = Client(self._port)
        number = 0
        try:
            while not self._stopping.is_set():
                order = (f"w{worker}-{number}", chance.choice(ITEMS), chance.randint(1, 9))
                number += 1
                while not self._stopping.is_set() and not self._settled(client.place(*order)):
                    self._stopping.wait(RETRY_PAUSE_S)
        except BaseException as error:  # noqa: BLE001 - raised again in the driver's thread
            self._failure = error
        finally:
            client.close()

    def _settled(self, attempt: records.Attempt) -> bool:
        """Write an attempt down; whether its order needs no other."""
        with self._lock:
            self._record.write(records.line(attempt))
            if attempt.outcome == records.OK:
                self._oks.append((attempt.start_us, attempt.end_us))
                return True
            self._broke.append(attempt.end_us)
            # A refusal is final; that nobody listened is not.
            return attempt.outcome == records.FAIL and attempt.detail.startswith("HTTP")


class Client:
    """One worker's connection, made anew when it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def place(self, order_id: str, item: str, qty: int) -> records.Attempt:
        body = json.dumps({"id": order_id, "item": item, "qty": qty})
        start = now_us()
        outcome, detail = self._attempt(body)
        return records.Attempt(
            order_id, records.digest(order_id, item, qty), start, now_us(), outcome, detail
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, body: str) -> tuple[str, str]:
        try:
            if self._connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_TIMEOUT_S)
                connection.connect()
                self._connection = connection
        except OSError as error:
            return records.FAIL, f"not sent: {error}"
        try:
            self._connection.request("POST", "/orders", body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return records.UNKNOWN, repr(error)
        if response.status in (200, 201):
            return records.OK, f"HTTP {response.status}"
        return (records.FAIL if response.status < 500 else records.UNKNOWN), f"HTTP {response.status}"


def now_us() -> int:
    return time.monotonic_ns() // 1000
