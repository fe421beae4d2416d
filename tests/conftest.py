"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import brokers as support


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[support.Brokers]:
    started = support.Brokers(tmp_path)
    try:
        yield started
    finally:
        await started.stop()
