"""Imported before everything else by the agent, which pays for every import on every node.

structlog looks for rich, to print tracebacks in colour on a terminal; an agent has none, and rich and what it brings
are some megabytes.
"""

from __future__ import annotations

import sys

# For ``import`` this means that there is no such module; whoever has it already keeps it.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
