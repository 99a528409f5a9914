"""A worker's standing with its routers: Hello, Status, Identify. Pure but for the transport.

Workers publish what they are and how loaded they are to every router (soft state); no router owns
a worker. A worker may start before its router: the Hello goes out when the link comes up.
"""

from collections.abc import Callable

from .messages import Drain, Hello, Identify, Message, Peer, Status, WorkerDescription, WorkerState
from .pages import PagePool
from .seams import Connected, Disconnected, Transport


class Membership:
    """Says Hello to each configured router on every new connection, and Status on every beat."""

    def __init__(
        self,
        transport: Transport,
        routers: list[str],
        description: WorkerDescription,
        pool: PagePool,
        beat_seconds: float,
    ):
        self._transport = transport
        self._routers = routers
        self._description = description
        self._pool = pool
        self._beat_seconds = beat_seconds
        self._next_beat = 0.0
        self.connected: set[str] = set()
        for endpoint in routers:
            transport.connect(endpoint)

    def link(self, event: Connected | Disconnected, state: WorkerState) -> bool:
        """A link changed. True if it was a router's."""
        if event.endpoint not in self._routers:
            return False
        if isinstance(event, Connected):
            self.connected.add(event.endpoint)
            self._hello(event.endpoint, state)
        else:
            self.connected.discard(event.endpoint)
        return True

    def take(self, sender: Peer, message: Identify, state: WorkerState) -> None:
        """A router that started again asks who we are."""
        self._hello(sender.endpoint, state)

    def beat(
        self,
        now: float,
        state: Callable[[], WorkerState],
        counters: Callable[[], dict[str, float]],
        stuck: str,
    ) -> float:
        """Send Status where it is due; returns when the next is."""
        if now >= self._next_beat:
            self._next_beat = now + self._beat_seconds
            added, removed = self._pool.changes()
            if self.connected:
                self._tell(Status(state(), added, removed, counters(), stuck))
        return self._next_beat

    def leave(self) -> None:
        """Place nothing more here."""
        self._tell(Drain())

    def _tell(self, message: Message) -> None:
        for endpoint in self.connected:
            self._transport.send(endpoint, message)

    def _hello(self, endpoint: str, state: WorkerState) -> None:
        # The changes so far go to those who were told the beginning, before the list starts anew.
        added, removed = self._pool.changes()
        if added or removed:
            for other in self.connected - {endpoint}:
                self._transport.send(other, Status(state, added, removed, {}))
        cached = self._pool.cached_hashes()
        self._transport.send(endpoint, Hello(self._description, state, cached))
