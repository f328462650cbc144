"""A proxy before a PostgreSQL server that cuts a connection at a chosen message."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes on what clients and a server say, until a client's message is the one to cut at.

    Args:
        server: The folder of the server's socket.

    Attributes:
        folder: That of the proxy's own socket: the `host` of an address.
        has_cut: Whether it has cut, and will not again.
    """

    def __init__(self, server: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s3t-proxy-"))
        self.has_cut = True
        self._is_last: Callable[[bytes, int], bool] = lambda message, before: False
        self._answered = False
        self._count = 0
        self._server = str(server / _SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / _SOCKET))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, is_last: Callable[[bytes, int], bool], answered: bool) -> None:
        """Has one connection cut.

        Args:
            is_last: Says of a client's message, and of how many have come from now on, whether to cut there.
            answered: Whether the server still gets that message, and its answer is lost; else the message is.
        """
        self._is_last, self._answered, self._count, self.has_cut = is_last, answered, 0, False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := client.recv(1 << 20):
                if not self.has_cut and self._is_last(message, self._count):
                    self.has_cut = True
                    client.shutdown(socket.SHUT_RDWR)  # before the answer is there
                    if self._answered:  # the server carries out what it has got before it notices that nobody is there
                        server.sendall(message)
                    break
                self._count += 1
                server.sendall(message)
        self._hang_up(client, server)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := server.recv(1 << 20):
                client.sendall(message)
        self._hang_up(client)

    def _hang_up(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
