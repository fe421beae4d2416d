"""Who is asked about a volume: control, or where there is none the agents of this cluster's own pods."""

from __future__ import annotations

from typing import Any, Protocol

from diffkeeper_operator import specs
from diffkeeper_operator.observations import Control


class Authority(Protocol):
    async def look(self, sac: specs.Sac) -> Control:
        """Everything about its volume. What cannot be asked is part of the answer."""

    async def attach(self, sac: specs.Sac, order: dict[str, Any]) -> None:
        """Have the directory of the running program captured; said again, nothing changes."""
