"""The reader's end of hand-overs: reserve pages, pull what is missing, check, take over.

Pure: acts only through the pool, the transport and the plane it was given; `now` is an argument.
One Incoming per hand-over; it ends by exactly one row of `moves.READER_MOVES`. A pulled block
counts only if the generation read after its data is the published one.
"""

from ..protocol import blockhash
from ..protocol.messages import (
    Agent,
    Compatibility,
    Handoff,
    Introduce,
    LeaseEnded,
    Peer,
    Published,
    Refused,
    Release,
    Renew,
)
from ..protocol.pages import PagePool
from ..protocol.seams import Transport
from .incoming import (
    SLOWEST_BYTES_PER_SECOND,
    Allowance,
    Incoming,
    Lost,
    ReaderSettings,
    Way,
    well_formed,
)
from .moves import Event, Moves, ReadState
from .plane import Completion, Plane, PlaneError


class Reader:
    """All hand-overs on their way into one worker."""

    def __init__(
        self,
        pool: PagePool,
        transport: Transport,
        plane: Plane,
        compatibility: Compatibility,
        settings: ReaderSettings,
        moves: Moves | None = None,
    ):
        self._pool = pool
        self._transport = transport
        self._plane = plane
        self._compatibility = compatibility
        self._settings = settings
        self.moves = moves or Moves()
        self.incoming: dict[tuple[str, int], Incoming] = {}  # by holder endpoint and lease
        self._ways: dict[str, tuple[int, Way, str]] = {}  # endpoint: incarnation, way, reason
        self._by_ticket: dict[int, Incoming] = {}
        self._unquiet: set[int] = set()
        self._renew_at = 0.0
        self._refused: tuple[Incoming, int, int] | None = None  # who, and at which revision
        self.complete: list[Incoming] = []  # taken by the server
        self.lost: list[Lost] = []  # taken by the server
        self.bytes_read = 0

    @property
    def waiting(self) -> list[Incoming]:
        return [one for one in self.incoming.values() if one.state is ReadState.WAITING]

    @property
    def active(self) -> bool:
        """Reads are open, or will be as soon as the holder publishes."""
        return bool(self._by_ticket) or bool(self._unquiet)

    # --- what others say -----------------------------------------------------------------------

    def take(
        self, sender: Peer, message: Handoff | Published | Agent | Refused | LeaseEnded, now: float
    ) -> None:
        """A holder's word."""
        match message:
            case Handoff():
                self._handed(sender, message, now)
            case Published(lease):
                incoming = self.incoming.get((sender.endpoint, lease))
                if incoming is not None:
                    self._published(incoming, message, now)
            case Agent(theirs, metadata):
                self._meet(sender, theirs, metadata)
            case Refused(reason):
                self._ways[sender.endpoint] = (sender.incarnation, Way.REFUSED, reason)
                self._lose_all(sender.endpoint, Event.REFUSED, reason)
            case LeaseEnded(lease, reason):
                incoming = self.incoming.get((sender.endpoint, lease))
                if incoming is not None:
                    self._lose(incoming, Event.EXPIRED, reason)

    def holder_lost(self, endpoint: str) -> None:
        """A holder's process or link is gone."""
        if endpoint in self._ways:
            del self._ways[endpoint]
            self._plane.remove_peer(endpoint)
        self._lose_all(endpoint, Event.PEER_LOST, f"the link to {endpoint} broke")

    def cancel(self, request: int, attempt: int) -> None:
        """The router does not want this attempt any more."""
        for incoming in list(self.incoming.values()):
            prefill = incoming.handoff.prefill
            if (prefill.request, prefill.attempt) == (request, attempt):
                self._end(incoming, Event.CANCELLED)

    # --- one turn ------------------------------------------------------------------------------

    @property
    def oldest_waiting(self) -> float:
        """Arrival of the first hand-over without pages, or infinity."""
        return min((one.arrived for one in self.waiting), default=float("inf"))

    def turn(self, allowance: Allowance, now: float) -> float:
        """Admit, post, collect, renew. Returns when to look again."""
        self._collect(now)
        for ticket in [ticket for ticket in self._unquiet if self._plane.quiet(ticket)]:
            self._unquiet.discard(ticket)
            self._pool.quiet(("read", ticket))
        self._admit(allowance, now)
        tickets = len(self._by_ticket)
        for incoming in list(self.incoming.values()):
            self._advance(incoming, now)
        if len(self._by_ticket) > tickets:  # posted just now: on one host it may be done already
            self._collect(now)
        if now >= self._renew_at:
            self._renew()
            self._renew_at = now + self._settings.renew_every
        return self._renew_at if self.incoming else float("inf")

    def _collect(self, now: float) -> None:
        for completion in self._plane.progress():
            self._completed(completion, now)

    def _admit(self, allowance: Allowance, now: float) -> None:
        """First come, first served: a large prompt at the head is not overtaken for ever."""
        room = allowance.sequences - (len(self.incoming) - len(self.waiting))
        for incoming in self.waiting:
            if room <= 0 or incoming.arrived > allowance.before:
                return
            room -= 1
            asked = (incoming, self._pool.revision, allowance.headroom)
            if asked == self._refused:
                return  # nothing changed since the last time
            skipped = self._pool.lookup(incoming.hashes)
            missing = incoming.total - len(skipped)
            if not self._pool.can_take(missing + allowance.headroom, skipped):
                self._refused = asked
                return
            self._pool.share(incoming.pool_holder, skipped)
            taken = self._pool.take(incoming.pool_holder, missing)
            assert taken is not None
            incoming.pages = skipped + taken
            incoming.skipped = incoming.asked = len(skipped)
            incoming.reserved = incoming.progressed = now
            incoming.state = self.moves.reader(incoming.state, Event.RESERVED)

    def _advance(self, incoming: Incoming, now: float) -> None:
        first = incoming.first_tokens
        if first is not None and "" not in first.finish:
            self._end(incoming, Event.NOTHING_LEFT)
        elif incoming.state is ReadState.WAITING:
            if now - incoming.arrived > self._settings.waiting_seconds:
                self._lose(incoming, Event.TIMED_OUT, "no pages became free in time")
        elif incoming.state is ReadState.PULLING:
            self._post(incoming, now)
            if any(by < now for _, _, by in incoming.reads.values()):
                self._lose(incoming, Event.TIMED_OUT, Event.TIMED_OUT.value)
            elif incoming.state is ReadState.PULLING and incoming.all_read:
                self._finish(incoming, now)
            elif not incoming.reads and now - incoming.progressed > self._settings.waiting_seconds:
                self._lose(incoming, Event.TIMED_OUT, "the holder published nothing for too long")

    def _post(self, incoming: Incoming, now: float) -> None:
        known = min(len(incoming.remote_pages), incoming.total)
        way = self._ways.get(incoming.holder.endpoint)
        if incoming.asked >= known or way is None or way[1] is not Way.OPEN:
            return
        start, incoming.asked = incoming.asked, known
        local = incoming.pages[start:known]
        try:
            ticket = self._plane.read(
                incoming.holder.endpoint,
                incoming.remote_pages[start:known],
                local,
                incoming.generations[start:known],
            )
        except PlaneError as error:
            self._lose(incoming, Event.READ_FAILED, str(error))
            return
        self._pool.expect(("read", ticket), local)
        self._by_ticket[ticket] = incoming
        size = (known - start) * self._settings.page_bytes
        limit = now + self._settings.read_seconds + size / SLOWEST_BYTES_PER_SECOND
        incoming.reads[ticket] = (start, known, limit)

    def _completed(self, completion: Completion, now: float) -> None:
        incoming = self._by_ticket.pop(completion.ticket, None)
        if incoming is None:
            return
        if completion.quiet:
            self._pool.quiet(("read", completion.ticket))
        else:
            self._unquiet.add(completion.ticket)
        start, end, _ = incoming.reads.pop(completion.ticket, (0, 0, 0.0))
        if incoming.state is not ReadState.PULLING:
            return  # ended before; only the quiet above mattered
        if completion.failed or not completion.quiet:
            reason = completion.failed or "the plane does not say that it has ended"
            self._lose(incoming, Event.READ_FAILED, reason)
        elif list(completion.generations) != incoming.generations[start:end]:
            self._lose(incoming, Event.STALE, Event.STALE.value)
        else:
            incoming.progressed = now
            self._arrived(incoming, start, end)

    def _arrived(self, incoming: Incoming, start: int, end: int) -> None:
        """Blocks start..end are ours and valid: full ones become findable by later prompts."""
        count = (end - start) * self._settings.page_bytes
        incoming.bytes_read += count
        self.bytes_read += count
        for block in range(start, min(end, len(incoming.hashes))):
            self._pool.seal(incoming.pages[block], incoming.hashes[block])

    # --- beginnings and ends -------------------------------------------------------------------

    def _handed(self, sender: Peer, handoff: Handoff, now: float) -> None:
        key = (sender.endpoint, handoff.lease)
        if key in self.incoming:
            return  # said twice
        known = self._ways.get(sender.endpoint)
        if known is not None and known[0] != sender.incarnation:
            self.holder_lost(sender.endpoint)  # it started again, and the link did not say so yet
        slots = self._settings.page_slots
        prefill = handoff.prefill
        root = blockhash.root(
            self._compatibility.model, self._compatibility.numeric_class, prefill.cache_salt
        )
        total = -(-len(prefill.token_ids) // slots)
        incoming = Incoming(
            handoff, sender, now, blockhash.extend(root, prefill.token_ids, slots), total
        )
        self.incoming[key] = incoming
        if total > self._pool.page_count:
            reason = f"{total} pages are needed, and there are {self._pool.page_count}"
            self._lose(incoming, Event.REFUSED, reason)
            return
        incarnation, way, reason = self._ways.get(sender.endpoint, (0, Way.INTRODUCED, ""))
        if incarnation != sender.incarnation:
            self._ways[sender.endpoint] = (sender.incarnation, Way.INTRODUCED, "")
            self._transport.send(sender.endpoint, Introduce(self._compatibility))
        elif way is Way.REFUSED:
            self._lose(incoming, Event.REFUSED, reason)

    def _published(self, incoming: Incoming, message: Published, now: float) -> None:
        known = len(incoming.remote_pages)
        if message.first_block > known:
            return  # something between was lost; the next Renew brings it again
        fresh = known - message.first_block
        end = message.first_block + len(message.pages)
        if end > incoming.total or not well_formed(message):
            reason = f"{end} blocks of {incoming.total} published, or lists that do not match"
            self._lose(incoming, Event.REFUSED, reason)
            return
        incoming.remote_pages += message.pages[fresh:]
        incoming.generations += message.generations[fresh:]
        if message.first_tokens is not None:
            incoming.first_tokens = message.first_tokens
            incoming.last_published = incoming.last_published or now
        incoming.progressed = now

    def _meet(self, sender: Peer, theirs: Compatibility, metadata: bytes) -> None:
        incarnation, way, _ = self._ways.get(sender.endpoint, (0, Way.REFUSED, ""))
        if incarnation != sender.incarnation or way is not Way.INTRODUCED:
            return  # not asked for, or of an incarnation that is gone
        if theirs != self._compatibility:
            self._lose_all(sender.endpoint, Event.REFUSED, "the holder's description changed")
            return
        try:
            self._plane.add_peer(sender.endpoint, sender.incarnation, metadata)
        except PlaneError as error:
            self._ways[sender.endpoint] = (sender.incarnation, Way.REFUSED, str(error))
            self._lose_all(sender.endpoint, Event.REFUSED, str(error))
            return
        self._ways[sender.endpoint] = (sender.incarnation, Way.OPEN, "")

    def _finish(self, incoming: Incoming, now: float) -> None:
        incoming.state = self.moves.reader(incoming.state, Event.ALL_READ)
        incoming.completed = now
        del self.incoming[incoming.holder.endpoint, incoming.handoff.lease]
        self._transport.send(incoming.holder.endpoint, Release(incoming.handoff.lease))
        self.complete.append(incoming)

    def _lose_all(self, endpoint: str, event: Event, reason: str) -> None:
        for incoming in list(self.incoming.values()):
            if incoming.holder.endpoint == endpoint:
                self._lose(incoming, event, reason)

    def _lose(self, incoming: Incoming, event: Event, reason: str) -> None:
        """Ended without its sequence, and not by the router's wish."""
        self._end(incoming, event)
        self.lost.append(Lost(incoming.handoff, event, reason))

    def _end(self, incoming: Incoming, event: Event) -> None:
        incoming.state = self.moves.reader(incoming.state, event)
        del self.incoming[incoming.holder.endpoint, incoming.handoff.lease]
        for ticket in incoming.reads:
            self._plane.abandon(ticket)
        incoming.reads.clear()
        self._pool.release(incoming.pool_holder)
        if event not in (Event.PEER_LOST, Event.EXPIRED):
            self._transport.send(incoming.holder.endpoint, Release(incoming.handoff.lease))

    def _renew(self) -> None:
        by_holder: dict[str, list[Incoming]] = {}
        for incoming in self.incoming.values():
            by_holder.setdefault(incoming.holder.endpoint, []).append(incoming)
        for endpoint, ones in by_holder.items():
            if self._ways[endpoint][1] is Way.INTRODUCED:
                self._transport.send(endpoint, Introduce(self._compatibility))  # one was lost
            leases = [one.handoff.lease for one in ones]
            self._transport.send(endpoint, Renew(leases, [len(one.remote_pages) for one in ones]))
