"""Kubernetes through the user's own kubectl: its context, its credentials, its rights."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from diffkeeper.domain import errors

SAC, SWITCHOVER = "sacs.sacs.diffkeeper.io", "switchovers.sacs.diffkeeper.io"
_TIMEOUT_S = 60.0


class Kubectl:
    def __init__(self, *, context: str | None, namespace: str | None, kubeconfig: str | None) -> None:
        flags = {"--context": context, "--namespace": namespace, "--kubeconfig": kubeconfig}
        self._flags = [f"{flag}={value}" for flag, value in flags.items() if value]

    def all(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._ask("get", kind, "-o", "json")["items"]
        return items

    def one(self, kind: str, name: str) -> dict[str, Any]:
        return self._ask("get", kind, name, "-o", "json")

    def create(self, thing: dict[str, Any]) -> dict[str, Any]:
        return self._ask("create", "-f", "-", "-o", "json", given=json.dumps(thing))

    def _ask(self, *arguments: str, given: str = "") -> dict[str, Any]:
        """One call and its JSON; raises NotFound, Unauthorised, Refused, TimedOut or Unreachable as kubectl says."""
        try:
            done = subprocess.run(
                ["kubectl", *self._flags, *arguments],
                input=given,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise errors.Misconfigured(
                "kubectl is not in PATH",
                reason="no-kubectl",
                hint="this is a plug-in of kubectl; install it first",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise errors.TimedOut(
                f"kubectl {arguments[0]} did not end within {_TIMEOUT_S:g} s; what was asked may happen",
                reason="no-answer",
            ) from error
        if done.returncode:
            raise _failure(done.stderr.strip())
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _failure(said: str) -> errors.DiffKeeperError:
    if "(NotFound)" in said:
        return errors.NotFound(said, reason="no-object", hint="kubectl get sac --all-namespaces")
    if "(Forbidden)" in said or "(Unauthorized)" in said:
        return errors.Unauthorised(said, reason="kubernetes-forbidden")
    if "the server doesn't have a resource type" in said:
        return errors.Misconfigured(
            said,
            reason="no-operator",
            hint="install the operator: dkctl manifests single | kubectl apply -f -",
        )
    if "(AlreadyExists)" in said or "is invalid" in said:
        return errors.Refused(said, reason="kubernetes-refused")
    return errors.Unreachable(said or "kubectl failed and said nothing", reason="kubectl-failed")
