"""Merging of shared files: long histories of text merged and opened, and JSON; measured by the replicator's own code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from diffkeeper.domain import errors
from dkctl.bench.figures import Figure, Report

MODULE = "diffkeeper_replicator.merging.bench"
MERGED_PER_S_AT_LEAST = 20_000
OPENED_MS_AT_MOST = 300
# Of a document's state after compaction, to its content.
STATE_AT_MOST = 3


def measure(megabytes: int, edits: int, say: Callable[[str], None]) -> Report:
    say(f"merging {edits:,} edits into {megabytes} MB of text ...")
    argv = [sys.executable, "-m", MODULE, "--megabytes", str(megabytes), "--edits", str(edits)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise errors.DiffKeeperError(f"{MODULE} ended with code {done.returncode}", reason="bench-failed")
    return report(json.loads(done.stdout))


def report(found: dict[str, Any]) -> Report:
    text, values = found["text"], found["json"]
    figures = [
        Figure(
            "text, edits merged",
            text["merged_per_s"],
            "/s",
            baseline=text["bare_merged_per_s"],
            at_least=MERGED_PER_S_AT_LEAST,
            note=f"{text['edits']:,} edits of two sites, each an update of its own",
        ),
        Figure(
            "text, opened",
            text["opened_ms"],
            "ms",
            baseline=text["bare_opened_ms"],
            at_most=OPENED_MS_AT_MOST,
            note=f"{text['content_bytes'] / 1e6:.1f} MB with that history",
        ),
        Figure(
            "text, state to content", text["state_bytes"] / text["content_bytes"], "", at_most=STATE_AT_MOST
        ),
        Figure("JSON, edit", values["edit_ms"], "ms", note=f"of {values['content_bytes']:,} bytes"),
        Figure("JSON, merge and write", values["merge_ms"], "ms"),
        Figure(
            "JSON, state to content",
            values["state_bytes"] / values["content_bytes"],
            "",
            at_most=STATE_AT_MOST,
        ),
    ]
    faults = [f"{kind} differs after merging" for kind in ("text", "json") if not found[kind]["same"]]
    return Report(
        "merge",
        figures,
        faults=faults,
        notes=["seconds of the processor, one core; the baseline is pycrdt alone in the same run"],
    )
