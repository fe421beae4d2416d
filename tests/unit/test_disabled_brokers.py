"""What a broker's log says of a disk that was full, as nats-server 2.15 writes it."""

from __future__ import annotations

from pathlib import Path

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


def test_of_a_log_only_what_is_new_is_read_and_one_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(WELL + b"\n")
    lines, end = disabled_brokers.new_lines(log, 0) or ([], 0)
    assert lines == [WELL]
    with log.open("ab") as file:
        file.write(FULL + b"\n")
    assert disabled_brokers.new_lines(log, end) == ([FULL], end + len(FULL) + 1)
    # Shorter than before: another broker's, from its beginning or nothing; never an error.
    assert disabled_brokers.new_lines(log, 10_000) == ([], end + len(FULL) + 1)
    assert disabled_brokers.new_lines(tmp_path, 0) is None
    assert disabled_brokers.new_lines(tmp_path / "none", 0) is None
