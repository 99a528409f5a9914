"""A worker's standing with its routers: Hello, Status, Identify. Pure but for the transport.

Workers publish what they are and how loaded they are to every router (soft state); no router owns
a worker. A worker may start before its router: the Hello goes out when the link comes up.
"""

import logging
from collections.abc import Callable, Mapping

from .messages import Drain, Hello, Identify, Message, Peer, Status, WorkerDescription, WorkerState
from .pages import PagePool
from .seams import Connected, Disconnected, Transport

log = logging.getLogger("penstock.worker")


class Membership:
    """Says Hello to each configured router on every new connection, and Status on every beat."""

    def __init__(
        self,
        transport: Transport,
        routers: list[str],
        description: WorkerDescription,
        pool: PagePool,
        beat_seconds: float,
        lane: Callable[[], str] | None = None,
        counts: Callable[[], Mapping[str, float]] = dict,
    ):
        """`lane`: what the plane really uses by now; `counts`: of what the worker stands on."""
        self._transport = transport
        self._routers = routers
        self._description = description
        self._pool = pool
        self._beat_seconds = beat_seconds
        self._lane = lane or (lambda: description.transport)
        self._known_lane = description.transport
        self._counts = counts
        self._next_beat = 0.0
        self._stuck = ""
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
        self._stuck = stuck
        if now >= self._next_beat:
            self._next_beat = now + self._beat_seconds
            added, removed = self._pool.changes()
            if (lane := self._lane()) != self._known_lane:
                self._known_lane = lane
                log.info("%s moves pages by %s", self._transport.me.name, lane)
            if self.connected:
                counted = {**counters(), **self._counts()}
                self._tell(Status(state(), added, removed, counted, stuck, lane))
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
            news = Status(state, added, removed, {}, self._stuck, self._known_lane)
            for other in self.connected - {endpoint}:
                self._transport.send(other, news)
        cached = self._pool.cached_hashes()
        self._transport.send(endpoint, Hello(self._description, state, cached))
