"""An HTTP/1.1 server for many slow streams: one asyncio protocol per connection, httptools parses.

By hand because it is the hot path: a write per streamed token is all that is left between the
flow and the kernel (bench/router.py prints what it costs beside a bare write). It knows requests,
answers and patience; no path, no JSON but its own error bodies.
"""

import asyncio
import logging
import socket
import ssl
from email.utils import formatdate

from .http_connection import Admit, Connection, Handle, Limits
from .http_outbox import Turn

log = logging.getLogger(__name__)


class HttpServer:
    """Listens, keeps the connections, and looks at their deadlines several times a second."""

    def __init__(
        self,
        handle: Handle,
        admit: Admit = lambda request: None,
        limits: Limits | None = None,
    ):
        self.handle = handle
        self.admit = admit
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.turn: Turn  # from start on
        self.draining = False
        self.date = b""
        self._listeners: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        reuse_port: bool = False,
        listener: socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen in the running loop, on `listener` if given."""
        loop = asyncio.get_running_loop()
        self.turn = Turn(loop)
        if listener is not None:
            server = await loop.create_server(lambda: Connection(self), sock=listener, ssl=tls)
        else:
            server = await loop.create_server(
                lambda: Connection(self),
                host,
                port,
                ssl=tls,
                reuse_port=reuse_port or None,
                backlog=1024,
            )
        self._listeners.append(server)
        if self._sweep is None:
            self._look()

    @property
    def port(self) -> int:
        """The (first) port listened on; useful after asking for port 0."""
        return self._listeners[0].sockets[0].getsockname()[1]

    async def stop(self, grace: float = 0.0) -> None:
        """Take nothing new, let open answers end for `grace` seconds, then cut what is left."""
        self.draining = True
        for server in self._listeners:
            server.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections and grace > 0:
            try:
                await asyncio.wait_for(self._idle.wait(), grace)
            except TimeoutError:
                log.warning("%d connections cut after the grace period", len(self.connections))
        for connection in list(self.connections):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.sleep(0)  # lets aborted connections say connection_lost

    def left(self, connection: "Connection") -> None:
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._idle.set()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.date = b"Date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            connection.look(now)
        limits = self.limits
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        shortest = min(shortest, limits.stalled_seconds, limits.linger_seconds)
        self._sweep = loop.call_later(min(0.5, shortest / 4), self._look)
