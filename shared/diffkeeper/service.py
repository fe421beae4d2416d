"""The life of a daemon: log, signals, one root task group, readiness, and an exit code that says what to do.

``run_service(name, main)`` runs ``main(scope)``. Main sets its parts up, says ``scope.ready()``, waits for
``scope.stopping`` and winds down in the order of the data; when it returns, what it spawned is cancelled.
SIGTERM and SIGINT set ``stopping``; a second one cancels. A spawned task that fails ends the service: a
daemon that lost a part is worse than one that starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

import structlog

from diffkeeper.domain import errors

# The codes of dkctl (DESIGN.md section 11), so that one table serves both.
EXIT_CODES = {
    "misconfigured": 2,
    "unreachable": 4,
    "not-found": 5,
    "refused": 6,
    "fenced": 6,
    "unauthorised": 7,
    "timed-out": 8,
}
EXIT_FAILED = 3

# mallopt(3), in bytes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MALLOC = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 32 << 20), (_M_TOP_PAD, 4 << 20))


class Scope:
    """What a service's main works with."""

    def __init__(self, name: str, group: asyncio.TaskGroup) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self.log: structlog.stdlib.BoundLogger = structlog.get_logger(name)
        self._group = group
        self._spawned: set[asyncio.Task[Any]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the service's own group, cancelled when main returns; its failure ends the service."""
        task = self._group.create_task(work, name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    def ready(self, **facts: Any) -> None:
        """Tell systemd (and the log) that the service does its work from now on."""
        _notify("READY=1")
        self.log.info("ready", **facts)

    def end_spawned(self) -> None:
        for task in self._spawned:
            task.cancel()


Main = Callable[[Scope], Awaitable[None]]


def run_service(name: str, main: Main) -> NoReturn:
    """Run a daemon's main to its end and exit the process with the code of what ended it."""
    configure_log()
    _keep_freed_memory()
    sys.exit(_run(name, main))


def _keep_freed_memory() -> None:
    """Have glibc keep a little of what is freed: frames are blocks of about a megabyte, made and dropped hundreds of
    times a second, and each one given back to the kernel costs a page fault for every 4 KiB of the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC:
            mallopt(parameter, value)


def _run(name: str, main: Main) -> int:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_supervise(name, main))
    except BaseExceptionGroup as group:
        return _report(name, _first(group))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
        return _report(name, error)
    return 0


async def _supervise(name: str, main: Main) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        scope = Scope(name, group)
        root = asyncio.current_task()
        assert root is not None, "a coroutine runs in a task"

        def stop(number: signal.Signals) -> None:
            if scope.stopping.is_set():
                scope.log.warning("stopping at once", signal=number.name)
                root.cancel()
                return
            scope.log.info("stopping", signal=number.name)
            _notify("STOPPING=1")
            scope.stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        await main(scope)
        scope.end_spawned()


def configure_log() -> None:
    """Structured lines on stderr: logfmt, or JSON with ``DIFFKEEPER_LOG_FORMAT=json``."""
    as_json = os.environ.get("DIFFKEEPER_LOG_FORMAT") == "json"
    level = logging.getLevelNamesMapping().get(
        os.environ.get("DIFFKEEPER_LOG_LEVEL", "INFO").upper(), logging.INFO
    )
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="level=%(levelname)s logger=%(name)s event=%(message)r",
    )


def exit_code(error: BaseException) -> int:
    return (
        EXIT_CODES.get(error.family, EXIT_FAILED)
        if isinstance(error, errors.DiffKeeperError)
        else EXIT_FAILED
    )


def _report(name: str, error: BaseException) -> int:
    """One clear sentence for what we foresaw, a traceback for what we did not."""
    log = structlog.get_logger(name)
    if isinstance(error, errors.DiffKeeperError):
        hint = {"hint": error.hint} if error.hint else {}
        log.error(error.message, family=error.family, reason=error.reason, **hint)
    elif isinstance(error, asyncio.CancelledError):
        log.error("stopped before it had wound down")
    else:
        log.error("failed", exc_info=error)
    return exit_code(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group of groups; the others came from the same fall."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _notify(state: str) -> None:
    """One datagram to systemd's socket, if there is one; not being heard is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
