"""The base says what the root is, also where that is what an empty tree begins with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.sinks import ListSink

from diffkeeper.domain.deltas import ROOT_ID, Op
from diffkeeper_capture.observer import Observer


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777])
def test_the_first_delta_of_a_base_gives_the_root_its_attributes(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    sink = ListSink()
    observer = Observer(tmp_path, sink)
    for _ in observer.scan_base():
        pass
    observer.close()
    first = sink.deltas[0]
    assert (first.op, first.file_id) == (Op.ATTR, ROOT_ID)
    assert first.args[0] == {"mode": mode, "uid": os.getuid(), "gid": os.getgid()}
