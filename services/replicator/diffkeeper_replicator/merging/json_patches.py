"""A JSON text changed so that it holds a given value, keeping layout and comments where they can stay.

Invariant: the same text and value give the same result at every site.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from diffkeeper_replicator.merging import json_text
from diffkeeper_replicator.merging.json_text import Kind, Node

# Longer lists are compared by position only.
ALIGNED_MAX_ITEMS = 2000
_IDENTITIES = ("id", "name", "key", "uid")


def patched(text: str, wanted: Node, commas: bool = False) -> str:
    """``text`` where it holds ``wanted`` already, else the least change of it that does. ``commas``: one
    behind the last element is meant so, and not left over from two edits.
    """
    try:
        if json_text.read(text, commas=commas).fingerprint() == wanted.fingerprint():
            return text
    except json_text.Unreadable:
        pass
    try:
        found = json_text.read(text, tolerant=True)
        inside = _value(text, found, wanted, "")
        result = json_text.trivia(text[: found.start], 0) + inside + json_text.trivia(text[found.end :], 0)
        if json_text.read(result, commas=commas).fingerprint() == wanted.fingerprint():
            return result
    except json_text.Unreadable:
        pass
    return fresh(wanted, "\n") + "\n"


def fresh(node: Node, line: str) -> str:
    """A value written anew; ``line`` is a line feed and the indentation of where it stands."""
    inner = line + "  " if line else ""
    if node.kind is Kind.OBJECT and node.members:
        rows = (f"{json_text.spelled(key)}: {fresh(one, inner)}" for key, one in node.members.items())
        return "{" + _listed(rows, inner, line) + "}"
    if node.kind is Kind.LIST and node.items:
        return "[" + _listed((fresh(one, inner) for one in node.items), inner, line) + "]"
    return {Kind.OBJECT: "{}", Kind.LIST: "[]", Kind.SCALAR: node.raw}[node.kind]


def _listed(rows: Iterable[str], inner: str, line: str) -> str:
    return inner + ("," + (inner or " ")).join(rows) + line


def _value(text: str, found: Node, wanted: Node, line: str) -> str:
    if found.fingerprint() == wanted.fingerprint() and _reads(text, found):
        return text[found.start : found.end]
    if found.kind is not wanted.kind or found.kind is Kind.SCALAR:
        return fresh(wanted, line)
    if found.kind is Kind.OBJECT:
        return _object(text, found, wanted, line)
    return _list(text, found, wanted, line)


def _reads(text: str, found: Node) -> bool:
    try:
        json_text.read(text[found.start : found.end], commas=False)
    except json_text.Unreadable:
        return False
    return True


def _object(text: str, found: Node, wanted: Node, line: str) -> str:
    rows: list[tuple[str | None, str]] = []
    at = found.start + 1
    inner = _inner_line(text, found, line)
    for key, old in found.members.items():
        lead, at = text[at : old.key_start], old.end
        new = wanted.members.get(key)
        if new is not None:
            rows.append((lead, text[old.key_start : old.start] + _value(text, old, new, inner)))
    colon = ": " if inner or not found.members else _colon(text, found)
    for key, new in wanted.members.items():
        if key not in found.members:
            rows.append((None, json_text.spelled(key) + colon + fresh(new, inner)))
    return "{" + _joined(rows, text[at : found.end - 1], inner, line) + "}"


def _list(text: str, found: Node, wanted: Node, line: str) -> str:
    inner = _inner_line(text, found, line)
    partners = {new: old for old, new in aligned(found.items, wanted.items)}
    rows: list[tuple[str | None, str]] = []
    for number, new in enumerate(wanted.items):
        old = partners.get(number)
        if old is None:
            rows.append((None, fresh(new, inner)))
            continue
        begin = found.items[old - 1].end if old else found.start + 1
        node = found.items[old]
        rows.append((text[begin : node.start], _value(text, node, new, inner)))
    at = found.items[-1].end if found.items else found.start + 1
    return "[" + _joined(rows, text[at : found.end - 1], inner, line) + "]"


def _joined(rows: list[tuple[str | None, str]], tail: str, inner: str, line: str) -> str:
    """Rows with what stands before them; None for a new row."""
    pieces = []
    for number, (lead, body) in enumerate(rows):
        if lead is not None:
            pieces.append(json_text.trivia(lead, 1 if number else 0))
        elif number:
            pieces.append("," + (inner or " "))
        else:
            pieces.append(inner)
        pieces.append(body)
    end = json_text.trivia(tail, 0)
    if inner and rows and "\n" not in end:
        end += line
    return "".join(pieces) + end


def _inner_line(text: str, found: Node, line: str) -> str:
    """The line feed and indentation before the members; empty where they stand on one line."""
    first = next(iter(found.members.values()), None) if found.kind is Kind.OBJECT else None
    start = first.key_start if first else (found.items[0].start if found.items else -1)
    if start < 0:
        return line + "  " if line else ""
    lead = text[found.start + 1 : start]
    if "\n" not in lead:
        return ""
    last = lead.rsplit("\n", 1)[1]
    return "\n" + (last if not last.strip(" \t") else (line[1:] + "  "))


def _colon(text: str, found: Node) -> str:
    first = next(iter(found.members.values()))
    return ": " if text[first.start - 1] == " " else ":"


def aligned(old: list[Node], new: list[Node]) -> list[tuple[int, int]]:
    """Which elements are the same one, changed or not: pairs of positions, rising in both."""
    if max(len(old), len(new)) > ALIGNED_MAX_ITEMS:
        return [(number, number) for number in range(min(len(old), len(new)))]
    pairs: list[tuple[int, int]] = []
    prints = [one.fingerprint() for one in old], [one.fingerprint() for one in new]
    for tag, i, j, k, m in SequenceMatcher(None, *prints, autojunk=False).get_opcodes():
        if tag == "equal":
            pairs += zip(range(i, j), range(k, m), strict=True)
        elif tag == "replace":
            pairs += _paired(old, range(i, j), new, range(k, m))
    return pairs


def _paired(old: list[Node], gone: range, new: list[Node], come: range) -> list[tuple[int, int]]:
    if len(gone) == len(come) and all(_may_be(old[a], new[b]) for a, b in zip(gone, come, strict=True)):
        return list(zip(gone, come, strict=True))
    pairs = []
    at = come.start
    for a in gone:
        for b in range(at, come.stop):
            if _is_named_alike(old[a], new[b]):
                pairs.append((a, b))
                at = b + 1
                break
    return pairs


def _may_be(old: Node, new: Node) -> bool:
    return old.kind is new.kind and (_named(old) is None or _named(old) == _named(new))


def _is_named_alike(old: Node, new: Node) -> bool:
    return _named(old) is not None and _named(old) == _named(new)


def _named(node: Node) -> tuple[str, str] | None:
    for key in _IDENTITIES:
        if key in node.members:
            return key, node.members[key].fingerprint()
    return None
