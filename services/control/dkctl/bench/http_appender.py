"""The program that ``dkctl bench failover --front-door`` moves: a POST appends a line, its answer follows the
fsync.

HTTP/1.1 with connections kept open, a thread each. Nothing of it knows of DiffKeeper.
"""

from __future__ import annotations

import _thread
import os
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def main() -> None:
    path, port = sys.argv[1], int(sys.argv[2])
    descriptor = os.open(os.path.join(path, "appended"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with socket.create_server(("127.0.0.1", port), backlog=512) as server:
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread.start_new_thread(serve, (connection, descriptor))


def serve(connection: socket.socket, descriptor: int) -> None:
    """Requests as the bench sends them: the line is the path."""
    held = b""
    with connection:
        try:
            while True:
                while (end := held.find(b"\r\n\r\n")) < 0:
                    data = connection.recv(65_536)
                    if not data:
                        return
                    held += data
                line = held[:end].split(b" ", 2)[1]
                held = held[end + 4 :]
                os.write(descriptor, line[1:] + b"\n")
                os.fsync(descriptor)
                connection.sendall(ANSWER)
        except ConnectionError:
            return  # the client went away


if __name__ == "__main__":
    main()
