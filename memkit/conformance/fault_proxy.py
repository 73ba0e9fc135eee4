"""A TCP proxy in front of the suite's server that loses one request or one reply, as a network does."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Literal, Self

from memkit.conformance.adapter import Handle
from memkit.conformance.environment import messages_of
from memkit.conformance.trial import TrialSession
from memkit.server.launcher import RedisServer

Loss = Literal["request", "reply", "reply twice", "late reply", "hold", "every request", "late request"]
"""``request``: it never arrives; ``reply``: it was carried out, and the client gets no reply; ``reply twice``: nor to
the same request's retry; ``late reply``: no reply for LATE_S, then the connection breaks; ``hold``: the request stays
in the proxy, for the client to be killed meanwhile; ``every request``: the network is down; ``late request``: it is
carried out, after what is done meanwhile."""
MOST_ROUND_TRIPS = 40
LATE_S = 2.5
"""Longer than the timeouts that clients have in small examples (1 or 2 s)."""


class FaultProxy:
    """Forwards connections to a server's port; ``lose`` names the request that fails. A context manager.

    ``url`` is the server's, with the proxy's port.
    """

    def __init__(self, server: RedisServer) -> None:
        self._target = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = server.url.replace(f":{server.port}/", f":{self._listener.getsockname()[1]}/")
        self.requests = 0
        self.lost = threading.Event()
        """Set when the request that fails has arrived."""
        self._loss: Loss | None = None
        self._nth = 0
        self._again = b""
        self._meanwhile: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True, name="memkit-proxy").start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        for one in self._sockets:
            _shut(one)

    def lose(self, loss: Loss | None, nth: int = 1, *, meanwhile: Callable[[], object] | None = None) -> None:
        """Make the nth request from now on fail (None: none), and count ``requests`` from zero again.

        ``meanwhile`` is called when a reply is lost, before the connection breaks, or before a late request is sent.
        """
        with self._lock:
            self._meanwhile = meanwhile
            self._loss, self._nth, self.requests, self._again = loss, nth, 0, b""
            self.lost.clear()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += client, server
            threading.Thread(target=self._serve, args=(client, server), daemon=True, name="memkit-proxy").start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._forwarded(client, server):
                pass
        _shut(client)
        _shut(server)

    def _forwarded(self, client: socket.socket, server: socket.socket) -> bool:
        ready = select.select([client, server], [], [])[0]
        if server in ready:
            reply = server.recv(65536)
            client.sendall(reply)
            return bool(reply)
        request = client.recv(65536)
        loss = self._loss_of(request) if request else None
        if loss in ("reply", "reply twice", "late reply"):
            server.sendall(request)
            select.select([server], [], [], 2)
        if loss and self._meanwhile:
            self._meanwhile()
        if loss in ("hold", "late reply"):
            select.select([client], [], [], LATE_S if loss == "late reply" else None)
        if (loss and loss != "late request") or not request:
            return False
        server.sendall(request)
        return True

    def _loss_of(self, request: bytes) -> Loss | None:
        with self._lock:
            self.requests += 1
            if self._loss == "every request" or (self._loss and self.requests == self._nth):
                self._again = request if self._loss == "reply twice" else b""
                self.lost.set()
                return self._loss
            if self._again and request == self._again:
                self._again = b""
                return "reply"
            return None


@contextlib.contextmanager
def through_proxy(session: TrialSession) -> Iterator[tuple[FaultProxy, Handle]]:
    """Yield a proxy, and a handle on a session that has connected through it."""
    with FaultProxy(session.env.server) as proxy:
        handle = session.env.open(session.id, url=proxy.url)
        messages_of(handle)
        yield proxy, handle


def _shut(one: socket.socket) -> None:
    # shutdown first: closing alone does not wake a thread that waits in select or accept.
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
