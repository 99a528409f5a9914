"""The Transport seam over ZeroMQ: one inbox per process, one link per destination.

A Mailbox belongs to one thread. It never blocks but in `wait`, and it sleeps there until a
message, a link event or one of the caller's own descriptors has something to say.

What the seam leaves open is settled so:
- an endpoint given to `connect` is kept: the Mailbox connects until it answers, and again after
  every break. Messages wait for it (HIGH_WATER_MARK of them);
- an endpoint that is merely sent to is tried once. Where nobody answers, or when the connection
  breaks, that is a Disconnected, what was queued is dropped, and the next `send` tries anew;
- after a Disconnected nothing sent before it reaches the process that answers there next;
- a full queue is a Disconnected too, and is counted;
- what cannot be read, or is of another revision, closes its connection (`reception.py`).

A process that hangs while its machine lives still answers ZeroMQ's heartbeats (they come from
its input/output thread): that a worker makes progress is told by its Status, not by the link.
"""

import logging
import secrets
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import zmq

from . import codec
from .addresses import AddressError, format_endpoint, is_loopback, parse_endpoint
from .clusterkey import ClusterKey
from .gate import Gate
from .link import HIGH_WATER_MARK, Link, LinkState
from .messages import Message, Peer
from .reception import Counters, Reception
from .seams import Arrival, Clock, Connected, Disconnected, SystemClock

SHORT_SECONDS = 0.001  # epoll would round it up to a whole millisecond
FD_SETSIZE = 1024  # select looks at no higher descriptor
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.25)  # between tries at a kept endpoint
STEADY_SECONDS = 1.0  # a connection that ends sooner was not wanted, and is tried less often
HANGUPS_SAID = 4
MAX_SOCKETS = 1 << 14  # a link takes three

NEEDS_KEY = (
    "needs a cluster key: make one with `penstock keygen FILE` and name it as [cluster] key_file"
)

log = logging.getLogger("penstock.sockets")


class MailboxError(Exception):
    """The mailbox cannot be opened or asked so; the text says why and what would work."""


@dataclass(slots=True)
class _Destination:
    """One endpoint: its link, while there is one, and what waits for the link to come up."""

    endpoint: str
    kept: bool = False
    link: Link | None = None
    waiting: deque[bytes] = field(default_factory=deque)
    tries: int = 0
    hangups: int = 0  # connections in a row that ended at once
    up_at: float = 0.0
    retry_at: float = 0.0


def new_incarnation() -> int:
    """62 bits that grow from one start to the next: microseconds since 1970, then chance."""
    return (time.time_ns() // 1000) << 11 | secrets.randbits(11)


class Mailbox:
    """This process's end of all its conversations."""

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertise: str = "",
        key: ClusterKey | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Receive at host:port (0: any free port). Peers are told `advertise` (default: host)."""
        if key is None and not is_loopback(host):
            raise MailboxError(
                f"{name} would receive at {host}, which is beyond loopback and {NEEDS_KEY}"
            )
        self.counters = Counters()
        self.on_urgent: Callable[[], None] | None = None  # called when `receive` is due at once
        self._key = key
        self._clock = clock or SystemClock()
        self._destinations: dict[str, _Destination] = {}
        self._local: list[Arrival] = []  # arrivals that came from no socket
        self._extra: tuple[int, ...] = ()
        self._selector = selectors.DefaultSelector()
        self._context = zmq.Context()
        self._context.max_sockets = MAX_SOCKETS
        self._gate = Gate(self._context, key) if key is not None else None
        self._reception = self._receive_at(host, port)
        self._selector.register(self._reception.fileno(), selectors.EVENT_READ, self._reception)
        if self._gate is not None:
            self._selector.register(self._gate.fileno(), selectors.EVENT_READ, self._gate)
        endpoint = format_endpoint(advertise or host, self._reception.port)
        self._me = Peer(name, new_incarnation(), endpoint)
        self._header = codec.encode_header(self._me)

    @property
    def strangers(self) -> int:
        """Connections refused because they hold another key."""
        return self._gate.strangers if self._gate is not None else 0

    def counts(self, prefix: str) -> dict[str, float]:
        """Every counter by its name behind a prefix."""
        counted = asdict(self.counters) | {"strangers": self.strangers}
        return {prefix + name: count for name, count in counted.items()}

    @property
    def me(self) -> Peer:
        return self._me

    def connect(self, endpoint: str) -> None:
        """Keep a link to this endpoint, now and after every break."""
        if fault := self._unspeakable(endpoint):
            raise MailboxError(fault)
        destination = self._destinations.setdefault(endpoint, _Destination(endpoint))
        destination.kept = True
        if destination.link is None:
            self._open_link(destination)

    def send(self, endpoint: str, message: Message) -> None:
        """Hand over a message. Never blocks; what becomes of the link comes as an arrival."""
        body = codec.encode(message)
        destination = self._destinations.get(endpoint) or self._meet_destination(endpoint)
        if destination is None:
            return
        link = destination.link
        if link is not None and link.state is LinkState.UP:
            if link.send([self._header, body]):
                self.counters.sent += 1
                return
        elif len(destination.waiting) < HIGH_WATER_MARK:
            destination.waiting.append(body)
            return
        self.counters.discarded += 1
        self._overflow(destination)

    def receive(self) -> list[Arrival]:
        """Everything that arrived, link events last: words a peer spoke precede its end."""
        now = self._clock.now()
        events: list[Arrival] = self._local
        self._local = []
        told = self._reception.more
        for key, _ in self._selector.select(0):
            if key.data is self._reception:
                told = True
            elif isinstance(key.data, _Destination):
                events += self._follow(key.data, now)
            elif isinstance(key.data, Gate):
                key.data.progress()
        if self._destinations:
            self._retry(now)
        received = self._reception.drain() if told else []
        if self._reception.more and self.on_urgent is not None:
            self.on_urgent()
        return [*received, *events]

    def wait(self, timeout_seconds: float, extra_filenos: Sequence[int] = ()) -> None:
        """Sleep until `receive` is due, one of `extra_filenos` is readable, or time is up."""
        self._watch_extra(tuple(extra_filenos))
        if self._local or self._reception.more:
            return
        due = self.seconds_until_due()
        seconds = timeout_seconds if due is None else min(due, timeout_seconds)
        descriptor = self.fileno()
        if 0 < seconds < SHORT_SECONDS and descriptor < FD_SETSIZE:
            select.select([descriptor], (), (), seconds)
        else:
            self._selector.select(seconds)

    def fileno(self) -> int:
        """One descriptor, readable when `receive` is due; for loops that do not `wait`. They
        also mind `seconds_until_due` and `on_urgent`, as Watch does."""
        return self._selector.fileno()  # type: ignore[attr-defined]  # epoll and kqueue have it

    def seconds_until_due(self) -> float | None:
        """When `receive` should run although nothing is readable (a try at a kept endpoint)."""
        times = [d.retry_at for d in self._destinations.values() if d.kept and d.link is None]
        return max(0.0, min(times) - self._clock.now()) if times else None

    def forget(self, endpoint: str) -> None:
        """Close the link at once, dropping what is queued; nothing more is said about it."""
        destination = self._destinations.pop(endpoint, None)
        if destination is not None:
            self._close_link(destination)
            self.counters.discarded += len(destination.waiting)

    def close(self, flush_seconds: float = 0.0) -> None:
        """End all conversations; last words get `flush_seconds` to go out."""
        for destination in self._destinations.values():
            self._close_link(destination, round(flush_seconds * 1000))
        self._destinations.clear()
        self._reception.close()
        if self._gate is not None:
            self._gate.close()
        self._selector.close()
        self._context.term()

    def _receive_at(self, host: str, port: int) -> Reception:
        try:
            return Reception(self._context, host, port, self._key, self.counters)
        except (zmq.ZMQError, OSError) as error:
            self._selector.close()
            self._context.destroy(0)
            raise MailboxError(
                f"cannot receive at {format_endpoint(host, port)}: {error}; "
                "choose another host or port (port 0 takes a free one)"
            ) from None

    # --- links ---------------------------------------------------------------------------------

    def _unspeakable(self, endpoint: str) -> str:
        """Why nothing may be sent there, or ""."""
        try:
            host, _ = parse_endpoint(endpoint)
        except AddressError as error:
            return str(error)
        if self._key is None and not is_loopback(host):
            return f"{endpoint} is beyond loopback and {NEEDS_KEY}"
        return ""

    def _meet_destination(self, endpoint: str) -> _Destination | None:
        """Open a link to an endpoint that is sent to for the first time (since it broke)."""
        destination = _Destination(endpoint)
        fault = self._unspeakable(endpoint)
        if not fault:
            self._destinations[endpoint] = destination
            if self._open_link(destination):
                return destination
            fault = "ZeroMQ cannot connect to it"
        self.counters.discarded += 1
        log.warning("nothing can be sent to %r: %s", endpoint, fault)
        self._destinations.pop(endpoint, None)
        self._post(Disconnected(endpoint))
        return None

    def _open_link(self, destination: _Destination) -> bool:
        link = Link(self._context, destination.endpoint, self._key)
        if link.state is LinkState.DOWN:
            link.close()
            if destination.kept:
                self._schedule(destination, self._clock.now())
            return False
        destination.link = link
        self._selector.register(link.fileno(), selectors.EVENT_READ, destination)
        return True

    def _close_link(self, destination: _Destination, linger_milliseconds: int = 0) -> None:
        if destination.link is not None:
            self._selector.unregister(destination.link.fileno())
            destination.link.close(linger_milliseconds)
            destination.link = None

    def _follow(self, destination: _Destination, now: float) -> list[Arrival]:
        link = destination.link
        if link is None:
            return []
        before = link.state
        after = link.progress()
        if after is before:
            return []
        if after is LinkState.UP:
            return self._flush(destination, link, now)
        if link.refused and destination.tries in (0, len(RETRY_SECONDS)):
            log.warning("%s refuses us: another cluster key or protocol", destination.endpoint)
        if before is LinkState.CONNECTING and destination.kept:
            self._close_link(destination)  # nobody there yet: no news, and the queue is kept
            self._schedule(destination, now)
            return []
        if before is LinkState.UP:
            self._note_end(destination, now)
        self._lose(destination, now)
        return [Disconnected(destination.endpoint)]

    def _note_end(self, destination: _Destination, now: float) -> None:
        if now - destination.up_at >= STEADY_SECONDS:
            destination.tries = destination.hangups = 0
            return
        destination.hangups += 1
        if destination.hangups == HANGUPS_SAID:
            log.warning(
                "%s ends each connection at once: does it run another version of Penstock?",
                destination.endpoint,
            )

    def _flush(self, destination: _Destination, link: Link, now: float) -> list[Arrival]:
        destination.up_at = now
        while destination.waiting:
            if not link.send([self._header, destination.waiting.popleft()]):
                self.counters.discarded += 1
                self._overflow(destination)
                break
            self.counters.sent += 1
        return [Connected(destination.endpoint)]

    def _lose(self, destination: _Destination, now: float) -> None:
        """The link is gone, and with it all that was meant for the process behind it."""
        self._close_link(destination)
        self.counters.discarded += len(destination.waiting)
        destination.waiting.clear()
        if destination.kept:
            self._schedule(destination, now)
        else:
            del self._destinations[destination.endpoint]

    def _schedule(self, destination: _Destination, now: float) -> None:
        pause = RETRY_SECONDS[min(destination.tries, len(RETRY_SECONDS) - 1)]
        destination.tries += 1
        destination.retry_at = now + pause
        if self.on_urgent is not None:
            self.on_urgent()

    def _retry(self, now: float) -> None:
        for destination in list(self._destinations.values()):
            if destination.kept and destination.link is None and now >= destination.retry_at:
                self._open_link(destination)

    def _overflow(self, destination: _Destination) -> None:
        """A message did not fit: the queue is full, or the connection has just ended."""
        link = destination.link
        was_up = link is not None and link.state is LinkState.UP
        if link is None or not was_up or link.progress() is not LinkState.DOWN:
            self.counters.overflows += 1
            log.warning("queue to %s is full; the link is given up", destination.endpoint)
        self._lose(destination, self._clock.now())
        self._post(Disconnected(destination.endpoint))

    def _post(self, arrival: Arrival) -> None:
        self._local.append(arrival)
        if self.on_urgent is not None:
            self.on_urgent()

    def _watch_extra(self, filenos: tuple[int, ...]) -> None:
        if filenos == self._extra:
            return
        for fileno in self._extra:
            self._selector.unregister(fileno)
        for fileno in filenos:
            self._selector.register(fileno, selectors.EVENT_READ)
        self._extra = filenos
