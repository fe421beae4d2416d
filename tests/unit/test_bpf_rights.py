"""Which capabilities are enough for the exact probe."""

from __future__ import annotations

import pytest

from diffkeeper_capture import bpf_loader

CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39


@pytest.mark.parametrize(
    ("capabilities", "enough"),
    [
        ((), False),
        ((CAP_BPF,), False),
        ((CAP_PERFMON,), False),
        ((CAP_BPF, CAP_PERFMON), True),
        ((CAP_SYS_ADMIN,), True),
    ],
)
def test_tracing_needs_both_small_capabilities_or_the_great_one(
    capabilities: tuple[int, ...], enough: bool
) -> None:
    held = sum(1 << number for number in capabilities)
    status = f"Name:\tagent\nCapPrm:\t{'f' * 16}\nCapEff:\t{held:016x}\nCapBnd:\t{'f' * 16}\n"
    assert bpf_loader.has_rights(status) is enough
