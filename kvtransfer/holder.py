"""The holder's end of hand-overs: leases on sealed pages, published to one reader each.

Pure: acts only through the pool, the transport and the plane it was given; `now` is an argument.
A lease is a holder in the page pool. It ends by exactly one row of `moves.HOLDER_MOVES`; then its
pages are let go at once, because a late read is seen by its generation before it counts.

In checked mode a page is published when its digest is known, some pages per `turn`.
"""

from collections import Counter
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
from ..protocol.pages import PagePool, arranged
from ..protocol.seams import Transport
from .columns import CHECK_BYTES, Columns
from .digests import Digests, digest_queue
from .moves import Event, LeaseState, Moves
from .plane import Plane
from .words import MOST_RENEWED, Offence, Refusals, mismatch


@dataclass(slots=True, eq=False)
class Lease:
    """Pages promised to one reader until it releases them or stops renewing."""

    id: int
    prefill: Prefill
    reader: str  # endpoint
    expires: float
    incarnation: int = 0  # the reader's, from its first word on
    state: LeaseState = LeaseState.PUBLISHING
    pages: list[int] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)  # what is said of each page
    published: int = 0  # pages[:published] were said to the reader
    first_tokens: FirstTokens | None = None
    ended_by: Event | None = None

    @property
    def pool_holder(self) -> tuple[str, int]:
        return ("lease", self.id)

    @property
    def nothing_left(self) -> bool:
        """Every choice ended with its first token: nobody needs the blocks."""
        return self.first_tokens is not None and "" not in self.first_tokens.finish

    @property
    def all_said(self) -> bool:
        return self.first_tokens is not None and self.published == len(self.pages)


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
        digests: Digests | None = None,
    ):
        """`digests` belongs to checked mode, and to no other."""
        self._pool = pool
        self._transport = transport
        self._plane = plane
        self._compatibility = compatibility
        self._lease_seconds = lease_seconds
        self.moves = moves or Moves()
        self.leases: dict[int, Lease] = {}
        self.ended: list[Lease] = []  # taken by the server: computations nobody waits for
        self._undigested = digest_queue(compatibility, digests)
        self._refusals = Refusals()
        # Ids of another incarnation at the same endpoint start elsewhere; all fit 63 bits.
        self._first_id = self._last_id = (transport.me.incarnation & 0x7FFFFFFF) << 31

    @property
    def refused_words(self) -> Counter[str]:
        """How many words were refused, by reason."""
        return self._refusals.counts

    @property
    def leased_pages(self) -> int:
        return sum(len(lease.pages) for lease in self.leases.values())

    @property
    def has_published(self) -> bool:
        """Somebody may be reading our pages."""
        return any(lease.published for lease in self.leases.values())

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
        fresh = arranged(pages)
        self._pool.share(lease.pool_holder, fresh)
        if self._undigested is not None:
            self._undigested.add(lease, len(lease.pages), pages)
        lease.pages += pages
        lease.columns.add((*self._pool.columns(fresh), b""))
        lease.first_tokens = first
        if lease.nothing_left:
            self._announce(lease)
            self._end(lease, Event.NOTHING_LEFT)
        elif self._undigested is None or not self._undigested.waits(lease):
            self._announce(lease)

    def take(self, sender: Peer, message: Introduce | Renew | Release, now: float) -> None:
        """A reader's word."""
        match message:
            case Introduce(theirs):
                self._introduced(sender, theirs)
            case Renew():
                self._renewed(sender, message, now)
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

    def turn(self, now: float) -> float:
        """Expire and, in checked mode, digest; returns when to look again."""
        due = self._expire(now)
        if self._undigested is None:
            return due
        digested: dict[Lease, None] = {}
        for lease, _, digest in self._undigested.turn():
            lease.columns.add((b"", b"", b"", digest.to_bytes(CHECK_BYTES, "little")))
            digested[lease] = None
        for lease in digested:
            self._announce(lease)
        return now if self._undigested.busy else due

    # --- inside --------------------------------------------------------------------------------

    def _expire(self, now: float) -> float:
        for lease in [lease for lease in self.leases.values() if lease.expires <= now]:
            self._end(lease, Event.EXPIRED)
            self._transport.send(lease.reader, LeaseEnded(lease.id, Event.EXPIRED.value))
        return min((lease.expires for lease in self.leases.values()), default=float("inf"))

    def _lease_of(self, sender: Peer, lease_id: int) -> Lease | None:
        """The lease, if this sender is its reader: a reference is no permission by itself."""
        lease = self.leases.get(lease_id)
        if lease is None:
            if not self._first_id < lease_id <= self._last_id:
                fault = Offence.NO_SUCH_LEASE, f"lease {lease_id} was never given out here"
                self._refusals.add(sender, fault)
            return None  # and one that ended is no offence
        if lease.reader != sender.endpoint:
            fault = Offence.FOREIGN_LEASE, f"lease {lease_id} is {lease.reader}'s"
            self._refusals.add(sender, fault)
            return None
        if lease.incarnation not in (0, sender.incarnation):
            fault = Offence.PAST_INCARNATION, f"lease {lease_id} is another incarnation's"
            self._refusals.add(sender, fault)
            return None
        lease.incarnation = sender.incarnation
        return lease

    def _introduced(self, sender: Peer, theirs: Compatibility) -> None:
        reason = mismatch(self._compatibility, theirs)
        if not reason:
            metadata = self._plane.metadata()
            self._transport.send(sender.endpoint, Agent(self._compatibility, metadata))
            return
        self._refusals.add(sender, (Offence.MISFIT, reason))
        self._transport.send(sender.endpoint, Refused(reason))
        for lease in [one for one in self.leases.values() if one.reader == sender.endpoint]:
            self._end(lease, Event.REFUSED)

    def _renewed(self, sender: Peer, renew: Renew, now: float) -> None:
        leases, known_blocks = renew.leases, renew.known_blocks
        if len(leases) != len(known_blocks) or min(known_blocks, default=0) < 0:
            sentence = f"{len(leases)} leases are renewed at {len(known_blocks)} block counts"
            self._refusals.add(sender, (Offence.BAD_LISTS, sentence))
        elif len(leases) > MOST_RENEWED:
            sentence = f"{len(leases)} leases in one word, and {MOST_RENEWED} are allowed"
            self._refusals.add(sender, (Offence.OUT_OF_RANGE, sentence))
        else:
            for lease_id, known in dict(zip(leases, known_blocks, strict=True)).items():
                self._renew(sender, lease_id, known, now)

    def _renew(self, sender: Peer, lease_id: int, known: int, now: float) -> None:
        lease = self._lease_of(sender, lease_id)
        if lease is None:
            self._transport.send(sender.endpoint, LeaseEnded(lease_id, "no such lease here"))
            return
        lease.expires = now + self._lease_seconds
        if known < lease.published or lease.all_said:
            # Something said earlier may be lost; saying it again changes nothing if it was not.
            self._send_blocks(lease, min(known, lease.published))

    def _announce(self, lease: Lease) -> None:
        """Say what can be said by now, and was not."""
        start = lease.published
        columns = lease.columns
        lease.published = columns.count if self._undigested is None else columns.digests
        self._send_blocks(lease, start)
        if lease.all_said and not lease.nothing_left:
            lease.state = self.moves.holder(lease.state, Event.LAST_BLOCK)

    def _send_blocks(self, lease: Lease, start: int) -> None:
        end = lease.published
        self._transport.send(
            lease.reader,
            Published(
                lease.id,
                start,
                *lease.columns.part(start, end),
                lease.first_tokens if lease.all_said or lease.nothing_left else None,
            ),
        )

    def _end(self, lease: Lease, event: Event) -> None:
        lease.state = self.moves.holder(lease.state, event)
        lease.ended_by = event
        del self.leases[lease.id]
        if self._undigested is not None:
            self._undigested.drop(lease)
        self._pool.release(lease.pool_holder)
        self.ended.append(lease)
