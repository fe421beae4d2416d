"""The program that ``dkctl bench failover`` moves: a request appends a block, its answer follows the fsync.

One byte asks, one byte answers. Nothing of it knows of DiffKeeper.
"""

from __future__ import annotations

import os
import socket
import sys

BLOCK = bytes(range(256)) * 16


def main() -> None:
    path, port = sys.argv[1], int(sys.argv[2])
    descriptor = os.open(os.path.join(path, "appended"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                serve(connection, descriptor)


def serve(connection: socket.socket, descriptor: int) -> None:
    try:
        while connection.recv(1):
            os.write(descriptor, BLOCK)
            os.fsync(descriptor)
            connection.sendall(b".")
    except ConnectionError:
        return  # the client went away; the next one is served


if __name__ == "__main__":
    main()
