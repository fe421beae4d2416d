"""A client of the repair service, which answers for what storage nodes hold; control answers for their processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffkeeper.domain import errors
from dkctl import client, deployments

# A scrub or a rebuild of everything takes as long as it takes.
LONG_S = 24 * 3600.0


class Repair:
    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._client = client.Control(address, token)

    @classmethod
    def of(cls, directory: Path) -> Repair:
        """The repair service of the deployment below ``directory``; raises NotFound when it has no storage nodes."""
        deployment = deployments.need(directory)
        if deployment.repair_address is None:
            raise errors.NotFound(
                f"the deployment in {directory} has no storage nodes",
                reason="no-storage",
                hint=f"dkctl down --dir {directory}; dkctl up --dir {directory} --storage-nodes 6",
            )
        return cls(deployment.repair_address, deployment.token)

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def health(self) -> dict[str, Any]:
        return self._call("GET", "/v1/health")

    def seal(self, timeout_s: float) -> dict[str, Any]:
        return self._call("POST", "/v1/seal", {"timeout_s": timeout_s}, timeout_s + client.ANSWER_TIMEOUT_S)

    def scrub(self) -> dict[str, Any]:
        return self._call("POST", "/v1/scrub", {}, LONG_S)

    def rebuild(self) -> dict[str, Any]:
        return self._call("POST", "/v1/rebuild", {}, LONG_S)

    def drain(self, node: str, *, draining: bool) -> dict[str, Any]:
        return self._call("POST", f"/v1/nodes/{quote(node, safe='')}/drain", {"draining": draining})

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout_s: float = client.ANSWER_TIMEOUT_S,
    ) -> dict[str, Any]:
        try:
            return self._client.call(method, path, body, timeout_s)
        except errors.Unreachable as error:
            if error.reason not in ("control-unreachable", "not-control"):
                raise
            raise errors.Unreachable(
                f"the repair service at {self.address} cannot be reached; nothing is known to have changed",
                reason="repair-unreachable",
                hint="dkctl up --detach starts it again; logs/repair.log of the deployment says why it ended",
            ) from error
