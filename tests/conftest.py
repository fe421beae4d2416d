"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests.support import brokers as support
from tests.support import leftovers

# A run in the background, or under nohup, ignores some signals, and what it starts would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# A busy machine is no fault of the code: what takes too long is told by the time limit of each test.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _nothing_stays_in_the_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    leftovers.unpin_below(tmp_path_factory.getbasetemp())


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[support.Brokers]:
    started = support.Brokers(tmp_path)
    try:
        yield started
    finally:
        await started.stop()
