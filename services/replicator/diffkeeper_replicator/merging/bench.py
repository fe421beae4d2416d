"""How fast histories are merged and opened, as JSON on stdout: the figures of ``dkctl bench merge``.

Times are of the processor, not of the wall: merging is nothing but computing. The history is that of two sites
that each put single characters at places all over one text, which Yjs can join least.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pycrdt

from diffkeeper_replicator.merging import text, wire, yjs_updates
from diffkeeper_replicator.merging.json_maps import JsonMerger

_BASE_SITE = "base"
_SITES = ("east", "west")
_LINE = b"a line of text such as people write them, 60 bytes or so long\n"
_START_STAMP = 1 << 52
_STRING_WITH_BOTH_NEIGHBOURS = 0xC4


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper_replicator.merging.bench")
    parser.add_argument("--megabytes", type=int, default=5)
    parser.add_argument("--edits", type=int, default=100_000)
    parser.add_argument("--json-edits", type=int, default=60)
    given = parser.parse_args(argv)
    found = {"text": measure_text(given.megabytes, given.edits), "json": measure_json(given.json_edits)}
    print(json.dumps(found))  # noqa: T201 - this is what it is run for


def measure_text(megabytes: int, edits: int) -> dict[str, Any]:
    content = _LINE * (megabytes * 1_000_000 // len(_LINE))
    first = text.TextMerger().new(_BASE_SITE).edit(content, _START_STAMP, _BASE_SITE)
    history = typed(len(content), edits)
    updates = [wire.pack(message) for message in history]

    document = text.TextMerger().new("north")
    document.merge(first)
    started = time.process_time()
    for update in updates:
        document.merge(update)
    merged_s = time.process_time() - started
    merged = document.content()

    bare: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc()
    characters = bare.get(yjs_updates.ROOT, type=pycrdt.Text)
    bare.apply_update(wire.unpack(first)[-1])
    started = time.process_time()
    for message in history:
        bare.apply_update(message[-1])
    bare_merged_s = time.process_time() - started

    document.compact()
    state = document.state()
    started = time.process_time()
    opened = text.TextMerger().load(state, "north")
    opened_content = opened.content()
    opened_s = time.process_time() - started
    bare_state = bare.get_update()
    started = time.process_time()
    again: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc()
    again.get(yjs_updates.ROOT, type=pycrdt.Text)
    again.apply_update(bare_state)
    bare_opened_s = time.process_time() - started
    return {
        "edits": edits,
        "merged_per_s": edits / merged_s,
        "bare_merged_per_s": edits / bare_merged_s,
        "opened_ms": opened_s * 1000,
        "bare_opened_ms": bare_opened_s * 1000,
        "content_bytes": len(merged),
        "state_bytes": len(state),
        "same": merged == opened_content == str(characters).encode(),
    }


def typed(length: int, edits: int) -> list[list[Any]]:
    """Messages of single characters put at places of a text of ``length`` characters by two sites."""
    rng = random.Random(1)
    base = text.client_of(_BASE_SITE)
    seen = {_BASE_SITE: _START_STAMP}
    messages = []
    for number in range(edits):
        site = _SITES[number % 2]
        place = rng.randrange(length - 1)
        update = bytes([1, 1]) + _number(text.client_of(site)) + _number(number // 2)
        update += bytes([_STRING_WITH_BOTH_NEIGHBOURS])
        update += _number(base) + _number(place) + _number(base) + _number(place + 1)
        update += bytes([1, 97 + number % 26, 0])
        stamp = _START_STAMP + (number + 1) * 4096
        messages.append([wire.FORMAT, "text", "u", site, stamp, dict(seen), update])
        seen = {**seen, site: stamp}
    return messages


def _number(value: int) -> bytes:
    pieces = []
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])


def measure_json(edits: int) -> dict[str, Any]:
    """Edits of a settings file of about 20 kB at two sites by turns, each merged and written at the other."""
    value = {f"section {one}": {f"key {two}": f"value {two}" for two in range(20)} for one in range(40)}
    merger = JsonMerger()
    sites = [(name, merger.new(name)) for name in _SITES]
    content = json.dumps(value, indent=2).encode()
    sites[1][1].merge(sites[0][1].edit(content, _START_STAMP, _SITES[0]))
    rng = random.Random(1)
    edit_s = merge_s = 0.0
    for number in range(edits):
        (name, document), (_, other) = sites[number % 2], sites[1 - number % 2]
        value[f"section {rng.randrange(40)}"][f"key {rng.randrange(20)}"] = f"changed {number}"
        content = json.dumps(value, indent=2).encode()
        started = time.process_time()
        update = document.edit(content, _START_STAMP + (number + 1) * 4096, name)
        edit_s += time.process_time() - started
        started = time.process_time()
        other.merge(update)
        other.content()
        merge_s += time.process_time() - started
    sites[0][1].compact()
    return {
        "content_bytes": len(content),
        "state_bytes": len(sites[0][1].state()),
        "edit_ms": edit_s / edits * 1000,
        "merge_ms": merge_s / edits * 1000,
        "same": sites[0][1].content() == sites[1][1].content() == content,
    }


if __name__ == "__main__":
    main()
