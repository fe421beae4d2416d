"""A client of control's admin API over http.client: JSON in, JSON out, errors of the five families."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from diffkeeper.domain import errors
from dkctl import deployments

# How long an answer may take beyond what the call itself says it waits.
ANSWER_TIMEOUT_S = 15.0
# An answer larger than this is not one of control's.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

# A moment is made from a checkpoint and the log before its first byte is sent.
HISTORY_TIMEOUT_S = 300.0

Query = Sequence[tuple[str, str] | tuple[str, bytes]]

_UP = "dkctl up --detach starts it again and takes over what still runs"


class Control:
    """One deployment's control service. A connection a call: commands make few of them."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.token = token

    @classmethod
    def of(cls, directory: Path) -> Control:
        """The control of the deployment below ``directory``; raises NotFound when there is no deployment."""
        deployment = deployments.need(directory)
        if deployment.address is None:
            raise errors.Unreachable(
                f"control of the deployment in {directory} was never up",
                reason="control-unreachable",
                hint=_UP,
            )
        return cls(deployment.address, deployment.token)

    def healthz(self, timeout_s: float = 2.0) -> dict[str, Any]:
        return self._call("GET", "/healthz", None, timeout_s)

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def volume(self, volume: str) -> dict[str, Any]:
        return self._call("GET", _volume_path(volume))

    def log(self, volume: str, after: str | None, limit: int) -> dict[str, Any]:
        query = {"limit": str(limit)} | ({"after": after} if after else {})
        return self._call("GET", f"{_volume_path(volume, 'log')}?{urlencode(query)}")

    def history(
        self, volume: str, action: str, query: Query = (), method: str = "GET", body: Any = None
    ) -> dict[str, Any]:
        """One call of ``…/history/ACTION`` with a JSON answer. What it looks for may take a while to make."""
        return self._call(method, _history_path(volume, action, query), body, HISTORY_TIMEOUT_S)

    @contextlib.contextmanager
    def history_stream(
        self, volume: str, action: str, query: Query = ()
    ) -> Iterator[http.client.HTTPResponse]:
        """The same with an answer that is read as it comes."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=HISTORY_TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request("GET", _history_path(volume, action, query), headers=headers)
            response = connection.getresponse()
            if response.status >= 400:
                answer = self._object(response.read(MAX_ANSWER_BYTES), response.status)
                sent = answer.get("error")
                raise errors.from_dict(sent) if isinstance(sent, dict) else _odd(self, response.status)
            yield response
        except TimeoutError as error:
            raise errors.TimedOut(
                f"nothing came from {self.address} for {HISTORY_TIMEOUT_S:g} s",
                reason="no-answer",
                hint="the same command again goes on from there",
            ) from error
        except (ConnectionError, http.client.HTTPException) as error:
            raise errors.Unreachable(
                f"the connection to control at {self.address} broke off ({error})",
                reason="control-unreachable",
                hint="the same command again goes on from there",
            ) from error
        finally:
            connection.close()

    def shared(self, volume: str) -> dict[str, Any]:
        return self._call("GET", _shared_path(volume))

    def conflicts(self, volume: str, site: str | None) -> dict[str, Any]:
        query = f"?{urlencode({'site': site})}" if site else ""
        return self._call("GET", _shared_path(volume, "conflicts") + query, None, 60)

    def resolve(self, volume: str, conflict: str, choice: str, site: str | None) -> dict[str, Any]:
        query = f"?{urlencode({'site': site})}" if site else ""
        path = _shared_path(volume, f"conflicts/{quote(conflict, safe='')}") + query
        return self._call("POST", path, {"choice": choice}, 60)

    def blame(self, volume: str, path: bytes, site: str | None) -> dict[str, Any]:
        query = {"path_b64": base64.b64encode(path).decode()} | ({"site": site} if site else {})
        return self._call("GET", _shared_path(volume, "blame") + f"?{urlencode(query)}", None, 60)

    def undo(
        self, volume: str, path: bytes, by: str, since: str | None, dry_run: bool, site: str | None
    ) -> dict[str, Any]:
        query = f"?{urlencode({'site': site})}" if site else ""
        body = {
            "path_b64": base64.b64encode(path).decode(),
            "by": by,
            "since": since,
            "dry_run": dry_run,
        }
        return self._call("POST", _shared_path(volume, "undo") + query, body, 60)

    def stop_program(self, volume: str) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "stop-program"), {}, 60)

    def start_program(self, volume: str) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "start-program"), {}, 60)

    def run(self, volume: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "run"), body, 60)

    def attach(self, volume: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "attach"), body, 60)

    def release(self, volume: str, exit_code: int | None) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "release"), {"exit_code": exit_code}, 60)

    def detach(self, volume: str) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "detach"), {}, 60)

    def sync(self, volume: str, level: str, timeout_s: float) -> dict[str, Any]:
        body = {"level": level, "timeout_s": timeout_s}
        return self._call("POST", _volume_path(volume, "sync"), body, timeout_s + ANSWER_TIMEOUT_S)

    def verify(self, volume: str, timeout_s: float) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "verify"), {}, timeout_s)

    def branches(self, volume: str) -> dict[str, Any]:
        return self._call("GET", _volume_path(volume, "branches"))

    def branch(self, volume: str, name: str, path: str | None, *, content: bool) -> dict[str, Any]:
        query = {"content": str(int(content))} | ({"path": path} if path else {})
        return self._call("GET", f"{_branch_path(volume, name)}?{urlencode(query)}", None, 600)

    def merge_branch(self, volume: str, name: str, paths: list[str], to: str | None) -> dict[str, Any]:
        return self._call("POST", _branch_path(volume, name, "/merge"), {"paths": paths, "to": to}, 600)

    def drop_branch(self, volume: str, name: str) -> dict[str, Any]:
        return self._call("POST", _branch_path(volume, name, "/drop"), {}, 60)

    def failover(self, volume: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "failover"), body)

    def operation(self, operation: str, wait_s: float) -> dict[str, Any]:
        path = f"/v1/operations/{quote(operation, safe='')}?wait_s={wait_s:g}"
        return self._call("GET", path, None, wait_s + ANSWER_TIMEOUT_S)

    def drill(self, volume: str, body: dict[str, Any]) -> dict[str, Any]:
        # A clone without reflinks is a copy, which takes as long as the volume is large.
        return self._call("POST", _volume_path(volume, "drill"), body, float(body["timeout_s"]) + 3600)

    def drills(self, volume: str) -> dict[str, Any]:
        return self._call("GET", _volume_path(volume, "drills"))

    def make_clone(self, volume: str, site: str, owner: int) -> dict[str, Any]:
        return self._call("POST", _volume_path(volume, "clones"), {"site": site, "owner": owner}, 3600)

    def remove_clone(self, site: str, clone: str) -> dict[str, Any]:
        return self._call(
            "DELETE", f"/v1/sites/{quote(site, safe='')}/clones/{quote(clone, safe='')}", None, 600
        )

    def stop_site(self, site: str, *, kill: bool) -> dict[str, Any]:
        return self._call("POST", f"/v1/sites/{quote(site, safe='')}/stop", {"kill": kill}, 60)

    def start_site(self, site: str) -> dict[str, Any]:
        return self._call("POST", f"/v1/sites/{quote(site, safe='')}/start", {}, 60)

    def stop_node(self, node: str, *, kill: bool) -> dict[str, Any]:
        return self.call("POST", f"/v1/nodes/{quote(node, safe='')}/stop", {"kill": kill}, 60)

    def start_node(self, node: str) -> dict[str, Any]:
        return self.call("POST", f"/v1/nodes/{quote(node, safe='')}/start", {}, 60)

    def storage(self) -> dict[str, Any]:
        return self.call("GET", "/v1/storage")

    def storage_node(self, node: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.call("POST", f"/v1/storage/nodes/{quote(node, safe='')}/{action}", body, 60)

    def shutdown(self, timeout_s: float) -> dict[str, Any]:
        return self._call("POST", "/v1/shutdown", {"timeout_s": timeout_s})

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        """Any call, for clients of services that speak as control does."""
        return self._call(method, path, body, timeout_s)

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        status, raw = self._exchange(method, path, body, timeout_s)
        answer = self._object(raw, status)
        if status >= 400:
            raise (
                errors.from_dict(answer["error"])
                if isinstance(answer.get("error"), dict)
                else _odd(self, status)
            )
        return answer

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise errors.TimedOut(
                f"control at {self.address} did not answer within {timeout_s:g} s; what was asked may happen",
                reason="no-answer",
                hint="dkctl status, and look into logs/control.log of the deployment",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unreachable(
                f"control at {self.address} cannot be reached ({error}); nothing is known to have changed",
                reason="control-unreachable",
                hint=_UP,
            ) from error
        finally:
            connection.close()

    def _object(self, raw: bytes, status: int) -> dict[str, Any]:
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise _odd(self, status) from error
        if not isinstance(answer, dict):
            raise _odd(self, status)
        return answer


def _volume_path(volume: str, action: str = "") -> str:
    return f"/v1/volumes/{quote(volume, safe='')}" + (f"/{action}" if action else "")


def _shared_path(volume: str, action: str = "") -> str:
    return f"/v1/shared/{quote(volume, safe='')}" + (f"/{action}" if action else "")


def _branch_path(volume: str, name: str, action: str = "") -> str:
    return _volume_path(volume, f"branches/{quote(name, safe='')}{action}")


def _history_path(volume: str, action: str, query: Query) -> str:
    """``action`` may be empty; a path in ``query`` whose bytes are not UTF-8 goes as ``path_b64``."""
    path = _volume_path(volume, "history") + (f"/{quote(action)}" if action else "")
    pairs = []
    for name, value in query:
        if isinstance(value, bytes):
            try:
                pairs.append((name, value.decode()))
            except UnicodeDecodeError:
                pairs.append((f"{name}_b64", base64.b64encode(value).decode()))
        else:
            pairs.append((name, value))
    return f"{path}?{urlencode(pairs)}" if pairs else path


def _odd(control: Control, status: int) -> errors.Unreachable:
    return errors.Unreachable(
        f"what answers at {control.address} is not DiffKeeper's control (HTTP status {status})",
        reason="not-control",
        hint="dkctl up --detach starts control and notes its address",
    )
