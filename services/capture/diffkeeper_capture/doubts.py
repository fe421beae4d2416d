"""What in the shadow may not be what is on disk, until somebody compares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from diffkeeper.domain import trees


@dataclass(slots=True)
class Doubts:
    """False when there are none."""

    # Directory id → names in it, or None for all of them.
    entries: dict[int, set[bytes] | None] = field(default_factory=dict)
    # Entries that should be right and are only to be verified: frames stay exact meanwhile.
    checks: set[tuple[int, bytes]] = field(default_factory=set)
    # Files whose content may differ.
    contents: set[int] = field(default_factory=set)
    # (id, name of an extended attribute), or b"" for the times: changed, and could not be read then.
    attributes: set[tuple[int, bytes]] = field(default_factory=set)
    # Entries that paths led through before anybody knew what they are: a link may lead anywhere.
    lost: set[tuple[int, bytes]] = field(default_factory=set)
    # Ids moved by calls whose order is not certain: a later call may have meant another one by the same path.
    suspects: set[int] = field(default_factory=set)
    # Of the unknown those that follow from another doubt, so that not knowing them is no news.
    expected: set[int] = field(default_factory=set)
    # Inodes that were changed and that the shadow does not have.
    unknown: set[int] = field(default_factory=set)
    everything: bool = False
    everywhere_content: bool = False
    # CLOCK_MONOTONIC of the last comparison that changed something: records older than this are explained by
    # it.
    compared_ns: int = 0
    # From the first serious doubt until all is settled: what else does not fit meanwhile follows from it.
    is_unsettled: bool = False
    # While the first sight goes on, what is not known has not been looked at yet.
    is_scanning: bool = False

    def __bool__(self) -> bool:
        return self.is_serious or bool(self.checks)

    @property
    def is_serious(self) -> bool:
        """Whether the log is known to differ from the disk, not only suspected."""
        return bool(self.entries or self.contents or self.attributes or self.unknown or self.everything)

    @property
    def is_urgent(self) -> bool:
        """Whether there is something to do before more has been drained."""
        return bool(self.entries or self.checks or self.contents or self.attributes)

    def explain(self, end_ns: int) -> bool:
        """Whether a comparison newer than a call may have logged its effect already."""
        return self.is_scanning or end_ns <= self.compared_ns

    def missed(self, inode: int, end_ns: int) -> None:
        """A file was changed that the shadow does not have, by a call that ended at ``end_ns``."""
        if not self.is_news(end_ns):
            self.expected.add(inode)
        self.unknown.add(inode)

    def is_news(self, end_ns: int) -> bool:
        """Whether nothing that is known already explains why a call does not fit the shadow."""
        return not (self.is_serious or self.is_unsettled or self.explain(end_ns))

    def check(self, directory: int, name: bytes) -> None:
        self.checks.add((directory, name))

    def entry(self, directory: int, name: bytes) -> None:
        names = self.entries.setdefault(directory, set())
        if names is not None:
            names.add(name)

    def directory(self, directory: int) -> None:
        self.entries[directory] = None

    def place_of(self, tree: trees.Tree, file_id: int) -> None:
        """Every entry of an id, and the directories they stand in."""
        node = tree.nodes.get(file_id)
        for parent, name in node.entries if node is not None else ():
            self.entry(parent, name)

    def take(self) -> Doubts:
        """What there is, to be settled; this one is empty afterwards."""
        taken = replace(self)
        self.entries, self.checks, self.contents, self.attributes = {}, set(), set(), set()
        self.unknown, self.expected, self.suspects, self.lost = set(), set(), set(), set()
        self.everything = self.everywhere_content = False
        return taken

    def scope(self) -> dict[int, frozenset[bytes] | None]:
        """Directories to compare, with the names in each, or None for all."""
        names: dict[int, set[bytes] | None] = dict(self.entries)
        for directory, name in self.checks:
            there = names.setdefault(directory, set())
            if there is not None:
                there.add(name)
        return {directory: None if of is None else frozenset(of) for directory, of in names.items()}
