"""What a broker's log says of a disk that was full, as nats-server 2.15 writes it."""

from __future__ import annotations

import pytest

from diffkeeper_control import disabled_brokers

FULL = (
    b"[16410] 2026/11/22 15:31:38.287548 [ERR] JetStream failed to store a msg on stream '$G > dk-v-north': "
    b"write /srv/north/msgs/1.blk: no space left on device"
)
WELL = b"[16410] 2026/11/22 15:31:38.287548 [INF] Server is ready"


@pytest.mark.parametrize(
    ("lines", "pid", "full"), [([WELL, FULL], 16410, True), ([FULL], 16411, False), ([WELL], 16410, False)]
)
def test_only_the_word_of_the_process_that_runs_counts(lines: list[bytes], pid: int, full: bool) -> None:
    assert disabled_brokers.said_no_room(lines, pid) is full
