"""JSON with its places in the text, so that a value can be changed and all around it stay as it was written.

Comments (``//``, ``/* */``) and a comma behind the last element are let through, as many programs do. The
tolerant reading is for text that two sites changed at once: it skips what does not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

DEPTH_MAX = 100

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n\ufeff]+|//[^\n]*|/\*.*?\*/)"
    r'|(?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    r"|(?P<plain>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])|true\b|false\b|null\b)"
    r"|(?P<mark>[{}\[\],:])"
    r"|(?P<other>.)",
    re.DOTALL,
)


class Kind(Enum):
    OBJECT = "{"
    LIST = "["
    SCALAR = "scalar"


@dataclass(slots=True)
class Node:
    """A value. ``raw`` is a scalar as written; ``members`` have the place of their key; ``start`` and ``end``
    are places in the text, -1 for a node that is in none.
    """

    kind: Kind
    raw: str = ""
    members: dict[str, Node] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    start: int = -1
    end: int = -1
    key_start: int = -1
    _print: str | None = None

    def fingerprint(self) -> str:
        """Equal for equal values, whatever the order of keys."""
        if self._print is None:
            match self.kind:
                case Kind.SCALAR:
                    self._print = self.raw
                case Kind.LIST:
                    self._print = "[" + ",".join(item.fingerprint() for item in self.items) + "]"
                case Kind.OBJECT:
                    inside = (f'"{key}":{node.fingerprint()}' for key, node in sorted(self.members.items()))
                    self._print = "{" + ",".join(inside) + "}"
        return self._print


class Unreadable(ValueError):
    """The text is no JSON; ``at`` is where that shows."""

    def __init__(self, at: int) -> None:
        super().__init__(f"no JSON at character {at}")
        self.at = at


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def read(text: str, tolerant: bool = False, commas: bool = True) -> Node:
    """The value in ``text``. Unreadable when there is none, or (not tolerant) anything besides; without
    ``commas``, also when a comma stands behind a last element.
    """
    reader = _Reader(text, tolerant, commas or tolerant)
    node = reader.value(0)
    if reader.token is not None and not tolerant:
        raise Unreadable(reader.token.start)
    return node


def name(raw: str) -> str:
    """A key in one spelling, in ASCII, without its quotes."""
    inside = raw[1:-1]
    return inside if inside.isascii() and "\\" not in raw else json.dumps(json.loads(raw))[1:-1]


def spelled(key: str) -> str:
    """A key as people write it."""
    text = json.dumps(json.loads(f'"{key}"'), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return f'"{key}"'
    return text


class _Reader:
    def __init__(self, text: str, tolerant: bool, commas: bool) -> None:
        self._tokens = _tokens(text)
        self._tolerant = tolerant
        self._commas = commas
        self._length = len(text)
        self.token: _Token | None = None
        self._next()

    def _next(self) -> None:
        self.token = next(self._tokens, None)

    def _peek(self) -> _Token:
        if self.token is None:
            raise Unreadable(self._length)
        return self.token

    def value(self, depth: int) -> Node:
        token = self._peek()
        while self._tolerant and (token.kind == "other" or token.text in ",:"):
            self._next()
            token = self._peek()
        if token.kind in ("string", "plain"):
            self._next()
            return Node(Kind.SCALAR, raw=token.text, start=token.start, end=token.end)
        if depth >= DEPTH_MAX or token.text not in "{[":
            raise Unreadable(token.start)
        self._next()
        node = Node(Kind(token.text), start=token.start)
        closer = "}" if node.kind is Kind.OBJECT else "]"
        while self._peek().text != closer:
            if node.kind is Kind.OBJECT:
                self._member(node, depth)
            else:
                self._item(node, depth)
            self._separator(closer)
        node.end = self._peek().end
        self._next()
        return node

    def _member(self, node: Node, depth: int) -> None:
        key = self._peek()
        if key.kind != "string":
            self._skip(key, depth)
            return
        self._next()
        if self._peek().text != ":":
            if not self._tolerant:
                raise Unreadable(self._peek().start)
            return
        self._next()
        if self._tolerant and self._peek().text in ",}":
            return
        value = self.value(depth + 1)
        value.key_start = key.start
        known = name(key.text)
        if known not in node.members:
            node.members[known] = value
        elif not self._tolerant:
            # Which of the two counts differs from program to program.
            raise Unreadable(key.start)

    def _item(self, node: Node, depth: int) -> None:
        token = self._peek()
        if token.kind in ("string", "plain") or token.text in "{[":
            node.items.append(self.value(depth + 1))
        else:
            self._skip(token, depth)

    def _skip(self, token: _Token, depth: int) -> None:
        if not self._tolerant or token.text in "}]":
            raise Unreadable(token.start)
        if token.text in "{[":
            self.value(depth + 1)
        else:
            self._next()

    def _separator(self, closer: str) -> None:
        token = self._peek()
        if token.text == ",":
            self._next()
            if not self._commas and self._peek().text == closer:
                raise Unreadable(token.start)
        elif token.text != closer and not self._tolerant:
            raise Unreadable(token.start)


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or ""
        if kind != "space":
            yield _Token(kind, found.group(), found.start(), found.end())


def trivia(text: str, commas: int) -> str:
    """Space and comments of ``text``, with the first ``commas`` commas; one that is missing is put first."""
    kept = []
    left = commas
    for found in _TOKEN.finditer(text):
        if found.lastgroup == "space":
            kept.append(found.group())
        elif found.group() == "," and left:
            left -= 1
            kept.append(",")
    return "," * left + "".join(kept)
