"""The holder's end of hand-overs: leases on sealed pages, published to one reader each.

Pure: acts only through the pool, the transport and the plane it was given; `now` is an argument.
A lease is a holder in the page pool. It ends by exactly one row of `moves.HOLDER_MOVES`; then its
pages are let go at once, because a late read is seen by its generation before it counts.
"""

from dataclasses import dataclass, field

from ..protocol.messages import (
    Agent,
    Compatibility,
    FirstTokens,
    Handoff,
    Introduce,
    LeaseEnded,
    Peer,
    Prefill,
    Published,
    Refused,
    Release,
    Renew,
)
from ..protocol.pages import PagePool
from ..protocol.seams import Transport
from .moves import Event, LeaseState, Moves
from .plane import Plane


def mismatch(mine: Compatibility, theirs: Compatibility) -> str:
    """The first field in which two workers differ, with both values; "" if they fit."""
    for name in Compatibility.__struct_fields__:
        ours, other = getattr(mine, name), getattr(theirs, name)
        if ours != other:
            return f"{name} differs: holder has {ours!r}, reader has {other!r}"
    return ""


@dataclass(slots=True, eq=False)
class Lease:
    """Pages promised to one reader until it releases them or stops renewing."""

    id: int
    prefill: Prefill
    reader: str  # endpoint
    expires: float
    state: LeaseState = LeaseState.PUBLISHING
    pages: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    first_tokens: FirstTokens | None = None
    ended_by: Event | None = None

    @property
    def pool_holder(self) -> tuple[str, int]:
        return ("lease", self.id)


class Holder:
    """All leases of one worker."""

    def __init__(
        self,
        pool: PagePool,
        transport: Transport,
        plane: Plane,
        compatibility: Compatibility,
        lease_seconds: float,
        moves: Moves | None = None,
    ):
        self._pool = pool
        self._transport = transport
        self._plane = plane
        self._compatibility = compatibility
        self._lease_seconds = lease_seconds
        self.moves = moves or Moves()
        self.leases: dict[int, Lease] = {}
        self.ended: list[Lease] = []  # taken by the server: computations nobody waits for
        # Ids of another incarnation at the same endpoint start elsewhere; all fit 63 bits.
        self._last_id = (transport.me.incarnation & 0x7FFFFFFF) << 31

    @property
    def leased_pages(self) -> int:
        return sum(len(lease.pages) for lease in self.leases.values())

    @property
    def has_published(self) -> bool:
        """Somebody may be reading our pages."""
        return any(lease.pages for lease in self.leases.values())

    def open(self, prefill: Prefill, cached_tokens: int, now: float) -> Lease:
        """Tell the reader that this request will be its own; blocks follow by `publish`."""
        self._last_id += 1
        lease = Lease(self._last_id, prefill, prefill.decode_at, now + self._lease_seconds)
        self.leases[lease.id] = lease
        self._transport.send(
            lease.reader, Handoff(prefill, lease.id, self._lease_seconds, cached_tokens)
        )
        return lease

    def publish(self, lease: Lease, pages: list[int], first: FirstTokens | None) -> None:
        """More sealed pages; with `first` (drawn tokens of the choices that go on) the last."""
        self._pool.share(lease.pool_holder, pages)
        start = len(lease.pages)
        lease.pages += pages
        lease.generations += [self._pool.generation(page) for page in pages]
        lease.first_tokens = first
        self._send_blocks(lease, start)
        if first is not None and "" not in first.finish:
            self._end(lease, Event.NOTHING_LEFT)
        elif first is not None:
            lease.state = self.moves.holder(lease.state, Event.LAST_BLOCK)

    def take(self, sender: Peer, message: Introduce | Renew | Release, now: float) -> None:
        """A reader's word."""
        match message:
            case Introduce(theirs):
                self._introduced(sender, theirs)
            case Renew(leases, known_blocks):
                for lease_id, known in zip(leases, known_blocks, strict=False):
                    self._renew(sender, lease_id, max(0, known), now)
            case Release(lease_id):
                lease = self._lease_of(sender, lease_id)
                if lease is not None:
                    self._end(lease, Event.RELEASED)

    def reader_lost(self, endpoint: str) -> None:
        """A reader's process or link is gone."""
        for lease in [lease for lease in self.leases.values() if lease.reader == endpoint]:
            self._end(lease, Event.PEER_LOST)

    def cancel(self, request: int, attempt: int, event: Event = Event.CANCELLED) -> None:
        """The router (or a failed step) ends this attempt."""
        for lease in list(self.leases.values()):
            if (lease.prefill.request, lease.prefill.attempt) == (request, attempt):
                self._end(lease, event)
                self._transport.send(lease.reader, LeaseEnded(lease.id, event.value))

    def expire(self, now: float) -> float:
        """End leases that were not renewed; returns when to look again."""
        for lease in [lease for lease in self.leases.values() if lease.expires <= now]:
            self._end(lease, Event.EXPIRED)
            self._transport.send(lease.reader, LeaseEnded(lease.id, Event.EXPIRED.value))
        return min((lease.expires for lease in self.leases.values()), default=float("inf"))

    # --- inside --------------------------------------------------------------------------------

    def _lease_of(self, sender: Peer, lease_id: int) -> Lease | None:
        """The lease, if this sender is its reader: a reference is no permission by itself."""
        lease = self.leases.get(lease_id)
        return lease if lease is not None and lease.reader == sender.endpoint else None

    def _introduced(self, sender: Peer, theirs: Compatibility) -> None:
        reason = mismatch(self._compatibility, theirs)
        if not reason:
            metadata = self._plane.metadata()
            self._transport.send(sender.endpoint, Agent(self._compatibility, metadata))
            return
        self._transport.send(sender.endpoint, Refused(reason))
        for lease in [one for one in self.leases.values() if one.reader == sender.endpoint]:
            self._end(lease, Event.REFUSED)

    def _renew(self, sender: Peer, lease_id: int, known: int, now: float) -> None:
        lease = self._lease_of(sender, lease_id)
        if lease is None:
            self._transport.send(sender.endpoint, LeaseEnded(lease_id, "no such lease here"))
            return
        lease.expires = now + self._lease_seconds
        if known < len(lease.pages) or lease.first_tokens is not None:
            # Something said earlier may be lost; saying it again changes nothing if it was not.
            self._send_blocks(lease, min(known, len(lease.pages)))

    def _send_blocks(self, lease: Lease, start: int) -> None:
        self._transport.send(
            lease.reader,
            Published(
                lease.id,
                start,
                lease.pages[start:],
                lease.generations[start:],
                [self._pool.content(page) for page in lease.pages[start:]],
                [],
                lease.first_tokens,
            ),
        )

    def _end(self, lease: Lease, event: Event) -> None:
        lease.state = self.moves.holder(lease.state, event)
        lease.ended_by = event
        del self.leases[lease.id]
        self._pool.release(lease.pool_holder)
        self.ended.append(lease)
