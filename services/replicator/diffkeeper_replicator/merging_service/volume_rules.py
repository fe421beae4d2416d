"""The rules in force at a site: what ``diffkeeper.yaml`` at the top of the shared volume says.

They follow from the merged file and nothing else, so sites that have taken in the same records have the same.
Where the file cannot be read as rules there are none, at every site, and the status says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffkeeper.domain import errors, shared_trees, trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator.merging import rules, rules_file, strategies
from diffkeeper_replicator.merging.rules import Choice, Rules


@dataclass(frozen=True, slots=True)
class InForce:
    rules: Rules = field(default_factory=Rules)
    trouble: errors.Misconfigured | None = None

    def shown(self) -> dict[str, Any]:
        trouble = None if self.trouble is None else self.trouble.to_dict()
        return {"count": len(self.rules.rules), "trouble": trouble}


def file_of(tree: shared_trees.SharedTree) -> bytes | None:
    """The object of the file with the rules."""
    entry_id = tree.children(ROOT).get(rules_file.NAME)
    if entry_id is None or tree.entries[entry_id].kind is not trees.Kind.FILE:
        return None
    return tree.entries[entry_id].object


def read(content: bytes) -> InForce:
    try:
        return InForce(rules_file.parse(content))
    except errors.Misconfigured as error:
        return InForce(trouble=error)


def choose(in_force: Rules, path: bytes, content: bytes) -> Choice:
    """The strategy for a file with this content; ``why`` where it is not the one its rule names."""
    if path == rules_file.NAME:  # rules say nothing of themselves
        fits = strategies.strategy("text").accepts("", content)
        return Choice("text" if fits else "opaque")
    shown = path.decode("utf-8", "surrogateescape")
    choice = in_force.choose(shown, len(content), lambda: content)
    why = _refusal(choice.strategy, content) if in_force.wanted(shown) is not None else None
    if why is None:
        return choice
    return Choice(rules.Rules().choose(shown, len(content), lambda: content).strategy, why)


def _refusal(name: str, content: bytes) -> str | None:
    """Why a strategy cannot hold this content."""
    try:
        strategies.strategy(name).new("-").edit(content, 1, "-")
    except errors.Refused as error:
        return f"it cannot be merged as {name}: {error.message}"
    return None
