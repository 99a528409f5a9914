"""The router's ear: what workers say goes to the fleet's books and to the flow. Pure."""

import logging
from functools import partial

from ..protocol.messages import (
    Admitted,
    Drain,
    Failed,
    Hello,
    Identify,
    Message,
    Peer,
    Status,
    Tokens,
    Unknown,
)
from ..protocol.seams import Arrival, Connected, Disconnected, Received, Transport
from .fleet import Fleet
from .flow import Flow

PAUSE_SECONDS = 1.0  # a tick this late means that this process stood still

log = logging.getLogger("penstock.router")


class Inbox:
    """Every arrival told to fleet and flow; and what waits looked after."""

    def __init__(self, transport: Transport, fleet: Fleet, flow: Flow):
        self._transport = transport
        self._fleet = fleet
        self._flow = flow
        self._ticked = 0.0
        self._guard = flow.guard

    @property
    def faults(self) -> int:
        """Words that could not be taken, and requests whose handling failed."""
        return self._guard.faults

    def deliver(self, arrivals: list[Arrival], now: float) -> None:
        """What the transport received. A word that breaks us must not cost the others."""
        for arrival in arrivals:
            take = partial(self._take, arrival, now)
            self._guard.run(take, "a word of a worker could not be taken", arrival)

    def tick(self, now: float) -> None:
        """Time went on: silent workers, requests that wait for one."""
        if now - self._ticked < PAUSE_SECONDS:  # else it was we who heard nothing
            for endpoint in self._fleet.silent(now):
                self._hangs(endpoint, now)
        self._ticked = now
        self._flow.tick(now)

    def _take(self, arrival: Arrival, now: float) -> None:
        match arrival:
            case Received(sender, message):
                self._message(sender, message, now)
            case Disconnected(endpoint):
                self._unlinked(endpoint, now)
            case Connected():
                pass

    def _message(self, sender: Peer, message: Message, now: float) -> None:
        if self._fleet.past(sender):
            return  # read late: another process answers at its endpoint
        if isinstance(message, Hello):
            self._joined(sender, message, now)
            return
        if not self._fleet.knows(sender):
            self._transport.send(sender.endpoint, Identify())
            return
        match message:
            case Tokens():
                self._fleet.frame(sender, message.state, now)
                self._flow.tokens(sender, message)
            case Admitted():
                self._flow.admitted(sender, message)
            case Failed():
                log.warning("%s: request %d: %s", sender.name, message.request, message.reason)
                self._flow.failed(sender, message)
            case Unknown():
                self._flow.unknown(sender, message)
            case Status():
                if self._fleet.status(sender, message, now):
                    log.error("%s is stuck: %s", sender.name, message.stuck)
                    self._flow.worker_lost(sender.endpoint)  # its requests go on elsewhere
            case Drain():
                self._lost(sender.endpoint, "it is leaving", now)
            case _:
                pass  # a word between workers

    def _joined(self, sender: Peer, message: Hello, now: float) -> None:
        before = self._fleet.workers.get(sender.endpoint)
        if before is not None and before.peer.incarnation != sender.incarnation:
            self._lost(sender.endpoint, "it started again", now)
        elif before is not None:
            # Its link to us broke and it forgot our work, though our link to it stands.
            self._flow.worker_lost(sender.endpoint)
        if self._fleet.hello(sender, message, now):
            self._transport.connect(sender.endpoint)  # the link tells at once when it dies
            log.info("%s joined as %s", sender.name, message.description.role)
        else:
            reason = self._fleet.misfits[sender.endpoint].reason
            log.error("%s is not used: %s", sender.name, reason)

    def _lost(self, endpoint: str, why: str, now: float) -> None:
        worker = self._fleet.lost(endpoint, now)
        if worker is not None:
            log.warning("%s left: %s", worker.peer.name, why)
            self._transport.forget(endpoint)
            self._flow.worker_lost(endpoint)

    def _unlinked(self, endpoint: str, now: float) -> None:
        if self._fleet.stood_still(endpoint, now):
            self._hangs(endpoint, now)
        if self._fleet.unlinked(endpoint, now):
            self._transport.forget(endpoint)  # if it goes on, it makes a link to us
        else:
            self._lost(endpoint, "its link broke", now)

    def _hangs(self, endpoint: str, now: float) -> None:
        worker = self._fleet.hangs(endpoint, now)
        log.error("%s hangs: it said nothing for %.1f s", worker.peer.name, now - worker.heard)
        self._flow.worker_lost(endpoint)
