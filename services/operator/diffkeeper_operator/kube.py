"""A small client of the Kubernetes API server: what the operator asks, and nothing more. Errors are of the five families.

Objects are plain dicts. Whatever is written is written with a condition: server-side apply owns only the operator's own
fields, and a status that carries a ``resourceVersion`` is refused (reason ``conflict``) when somebody was faster.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from diffkeeper.domain import errors

MANAGER = "diffkeeper-operator"
# An answer that takes longer is asked for again at the next look.
TIMEOUT_S = 20.0
ANSWER_MAX_BYTES = 64 * 1024 * 1024

Object = dict[str, Any]

PLURALS = {
    "SAC": "sacs",
    "Switchover": "switchovers",
    "Restore": "restores",
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Event": "events",
    "Lease": "leases",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "StatefulSet": "statefulsets",
}


def path(api_version: str, kind: str, namespace: str | None = None, name: str = "", tail: str = "") -> str:
    """Of the collection, or of the object called ``name``, or of its subresource."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    inside = f"/namespaces/{namespace}" if namespace else ""
    parts = [f"{root}{inside}/{PLURALS[kind]}", name, tail]
    return "/".join(part for part in parts if part)


def path_of(thing: Object, tail: str = "") -> str:
    metadata = thing["metadata"]
    return path(thing["apiVersion"], thing["kind"], metadata["namespace"], metadata["name"], tail)


class Kube:
    """One API server, one session for the operator's life. A token that was rotated is read again."""

    def __init__(self, login: Callable[[], kopf.ConnectionInfo]) -> None:
        self._login = login
        self._info = login()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_trust(self._info)),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, connect=5.0),
        )

    async def close(self) -> None:
        await self._session.close()

    async def minor(self) -> int:
        """Of the server's version 1.MINOR; builds of vendors write ``21+``."""
        answer = await self.call("GET", "/version")
        return int("".join(filter(str.isdigit, answer["minor"])) or 0)

    async def find(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return await self.call("GET", path(api_version, kind, namespace, name))
        except errors.NotFound:
            return None

    async def list(
        self, api_version: str, kind: str, namespace: str | None = None, labels: str = ""
    ) -> list[Object]:
        query = {"labelSelector": labels} if labels else {}
        answer = await self.call("GET", path(api_version, kind, namespace), query=query)
        # Items of a list do not say what they are.
        return [{"apiVersion": api_version, "kind": kind, **item} for item in answer["items"]]

    async def apply(self, thing: Object) -> Object:
        """Server-side apply as the manager: our fields are as ``thing`` says, those of others stay."""
        return await self.call(
            "PATCH",
            path_of(thing),
            thing,
            query={"fieldManager": MANAGER, "force": "true"},
            kind="application/apply-patch+yaml",
        )

    async def create(self, thing: Object) -> Object:
        metadata = thing["metadata"]
        return await self.call("POST", path(thing["apiVersion"], thing["kind"], metadata["namespace"]), thing)

    async def replace(self, thing: Object) -> Object:
        """With its ``resourceVersion``: a compare-and-set."""
        return await self.call("PUT", path_of(thing), thing)

    async def patch_status(self, thing: Object, status: Object, *, only_if_unchanged: bool = False) -> Object:
        body: Object = {"status": status}
        if only_if_unchanged:
            body["metadata"] = {"resourceVersion": thing["metadata"]["resourceVersion"]}
        return await self.call("PATCH", path_of(thing, "status"), body, kind="application/merge-patch+json")

    async def delete(self, thing: Object) -> None:
        """Gone already is gone."""
        try:
            await self.call("DELETE", path_of(thing), {"propagationPolicy": "Background"})
        except errors.NotFound:
            return

    async def call(
        self,
        method: str,
        where: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
    ) -> Object:
        status, raw = await self._ask(method, where, body, query or {}, kind)
        if status == 401:
            self._info = self._login()
            status, raw = await self._ask(method, where, body, query or {}, kind)
        return _read(method, where, status, raw)

    async def _ask(
        self, method: str, where: str, body: Object | None, query: Mapping[str, str], kind: str
    ) -> tuple[int, bytes]:
        headers = {**self._info.as_http_headers(), "Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = kind
            data = json.dumps(body)
        url = self._info.server.rstrip("/") + where
        try:
            async with self._session.request(
                method, url, params=dict(query), data=data, headers=headers
            ) as response:
                raw = await response.content.read(ANSWER_MAX_BYTES)
                while more := await response.content.read(ANSWER_MAX_BYTES - len(raw) + 1):
                    raw += more
                    if len(raw) > ANSWER_MAX_BYTES:
                        raise errors.Refused(f"the answer to {where} is too large", reason="answer-too-large")
                return response.status, raw
        except TimeoutError as error:
            raise errors.TimedOut(
                f"the API server did not answer {method} {where} within {TIMEOUT_S:g} s", reason="api-slow"
            ) from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise errors.Unreachable(
                f"the API server cannot be asked ({method} {where}): {error}", reason="api-unreachable"
            ) from error


def _read(method: str, where: str, status: int, raw: bytes) -> Object:
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise errors.Transient(
            f"{method} {where} was answered {status} without JSON", reason="bad-answer"
        ) from error
    if status < 400:
        assert isinstance(answer, dict), "the API server answers with objects"
        return answer
    message = f"{method} {where}: {answer.get('message', status)}"
    match status:
        case 404:
            raise errors.NotFound(message, reason="no-object")
        case 409:
            taken = answer.get("reason") == "AlreadyExists"
            raise errors.Refused(message, reason="already-exists" if taken else "conflict")
        case 401 | 403:
            raise errors.Unauthorised(
                message, reason="api-forbidden", hint="apply the operator's roles again: dkctl manifests"
            )
        case 400 | 422:
            raise errors.Refused(message, reason="api-refused")
        case _:
            raise errors.Transient(message, reason="api-failed", status=status)


def _trust(info: kopf.ConnectionInfo) -> ssl.SSLContext | bool:
    """What the connection to the server is checked with."""
    if not info.server.startswith("https:"):
        return True
    if info.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        data = None if info.ca_data is None else base64.b64decode(info.ca_data).decode()
        context = ssl.create_default_context(
            cafile=None if info.ca_path is None else str(info.ca_path), cadata=data
        )
    _show_certificate(context, info)
    return context


def _show_certificate(context: ssl.SSLContext, info: kopf.ConnectionInfo) -> None:
    if info.certificate_path and info.private_key_path:
        context.load_cert_chain(str(info.certificate_path), str(info.private_key_path))
    elif info.certificate_data and info.private_key_data:
        # The ssl module reads certificates from files only.
        with tempfile.TemporaryDirectory(prefix="diffkeeper-operator-") as name:
            pair = Path(name) / "pair.pem"
            pair.touch(0o600)
            pair.write_bytes(
                base64.b64decode(info.certificate_data) + b"\n" + base64.b64decode(info.private_key_data)
            )
            context.load_cert_chain(str(pair))
