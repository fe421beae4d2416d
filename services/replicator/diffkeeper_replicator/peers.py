"""The replicators of other sites, asked for a chunk that is damaged here. Blocking; for a worker's thread."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from urllib.parse import urlsplit

from blake3 import blake3

from diffkeeper.domain import chunks

CONNECT_TIMEOUT_S = 5.0
# The process that answers may have to be started first, on a machine that is busy.
ANSWER_TIMEOUT_S = 30.0


class Peers:
    def __init__(self, addresses: Sequence[str], token: str) -> None:
        self._addresses = tuple(addresses)
        self._token = token

    def chunk(self, ref: chunks.Ref) -> bytes | None:
        """The bytes of a chunk from the first site that has it good."""
        for address in self._addresses:
            data = self._ask(address, ref)
            if data is not None and len(data) == ref.size and blake3(data).digest() == ref.hash:
                return data
        return None

    def _ask(self, address: str, ref: chunks.Ref) -> bytes | None:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_TIMEOUT_S)
            headers = {"Authorization": f"Bearer {self._token}"}
            connection.request("GET", f"/v1/chunks/{ref.hash.hex()}?size={ref.size}", headers=headers)
            response = connection.getresponse()
            data = response.read(chunks.MAX_BYTES + 1)
            return data if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None  # another site may answer; that none does is told by the caller
        finally:
            connection.close()
