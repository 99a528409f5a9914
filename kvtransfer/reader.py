"""The reader's end of hand-overs: reserve pages, pull what is missing, check, take over.

Pure: acts only through the pool, the transport and the plane it was given; `now` is an argument.
One Incoming per hand-over; it ends by exactly one row of `moves.READER_MOVES`. A block is read only
if it holds what this prompt hashes to, and counts only if the generation read after its data is the
published one and, in checked mode, if its bytes have the published digest.
"""

from array import array
from collections import Counter

from ..protocol.messages import (
    Agent,
    Compatibility,
    Handoff,
    LeaseEnded,
    Peer,
    Published,
    Refused,
    Release,
    Renew,
)
from ..protocol.pages import PagePool
from ..protocol.seams import Transport
from .digests import Digests, digest_queue
from .hearing import begun, hashes_of, take_in
from .incoming import Allowance, Incoming, Lost, Movement, OpenRead, ReaderSettings
from .moves import Event, Moves, ReadState
from .own_time import OwnTime
from .pace import Paces
from .plane import STALE, Completion, OutsidePool, Plane, PlaneError
from .ways import Ways
from .words import (
    MOST_RENEWED,
    Fault,
    Offence,
    Refusals,
    objection_to_content,
    objection_to_handoff,
)


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
        digests: Digests | None = None,
    ):
        """`digests` belongs to checked mode, and to no other."""
        self._pool = pool
        self._transport = transport
        self._plane = plane
        self._compatibility = compatibility
        self._settings = settings
        self.moves = moves or Moves()
        self.incoming: dict[tuple[str, int], Incoming] = {}  # by holder endpoint and lease
        self._ways = Ways(transport, plane, compatibility)
        self._paces = Paces()
        self._own = OwnTime()  # what deadlines of reads are measured in
        self._unchecked = digest_queue(compatibility, digests)
        self._refusals = Refusals()
        self._by_ticket: dict[int, Incoming] = {}
        self._unquiet: dict[int, Incoming] = {}
        self._renew_at = 0.0
        self._refused: tuple[Incoming, int, int] | None = None  # who, and at which revision
        self._movement = Movement(pool)
        self.complete: list[Incoming] = []  # taken by the server
        self.lost: list[Lost] = []  # taken by the server
        self.bytes_read = 0

    @property
    def refused_words(self) -> Counter[str]:
        """How many words were refused, by reason."""
        return self._refusals.counts

    @property
    def waiting(self) -> list[Incoming]:
        return [one for one in self.incoming.values() if one.state is ReadState.WAITING]

    @property
    def open_reads(self) -> dict[int, Incoming]:
        """By ticket, those included that nobody waits for any more."""
        return self._unquiet | self._by_ticket

    # --- what others say -----------------------------------------------------------------------

    def take(
        self, sender: Peer, message: Handoff | Published | Agent | Refused | LeaseEnded, now: float
    ) -> None:
        """A holder's word."""
        if self._ways.restarted(sender):
            self.holder_lost(sender.endpoint)  # the link did not say so yet, or said it too early
        match message:
            case Handoff():
                self._handed(sender, message, now)
            case Published(lease):
                if (incoming := self._incoming_of(sender, lease)) is not None:
                    self._published(incoming, message, now)
            case Agent(theirs, metadata):
                if self._answers(sender) and self._ways.waits(sender.endpoint):
                    if reason := self._ways.answered(sender, theirs, metadata):
                        self._lose_all(sender.endpoint, Event.REFUSED, reason)
            case Refused(reason):
                if self._answers(sender) and self._ways.waits(sender.endpoint):
                    self._ways.refuse(sender)
                    self._refusals.add(sender, (Offence.MISFIT, reason))
                    self._lose_all(sender.endpoint, Event.REFUSED, reason)
            case LeaseEnded(lease, reason):
                if (incoming := self._incoming_of(sender, lease)) is not None:
                    self._lose(incoming, Event.EXPIRED, reason)

    def _incoming_of(self, sender: Peer, lease: int) -> Incoming | None:
        """The hand-over, if this sender is its holder: a reference is no permission by itself."""
        incoming = self.incoming.get((sender.endpoint, lease))
        if incoming is None:
            # Late words of ended hand-overs are no offence; those of another's are.
            if any(lease == one for _, one in self.incoming):
                fault = Offence.FOREIGN_LEASE, f"lease {lease} is another holder's"
                self._refusals.add(sender, fault)
        elif incoming.holder.incarnation != sender.incarnation:
            fault = Offence.PAST_INCARNATION, f"lease {lease} is another incarnation's"
            self._refusals.add(sender, fault)
            return None
        return incoming

    def _answers(self, sender: Peer) -> bool:
        """Does this sender answer an introduction of ours?"""
        if (fault := self._ways.objection(sender)) is not None:
            self._refusals.add(sender, fault)
        return fault is None

    def holder_lost(self, endpoint: str) -> None:
        """A holder's process or link is gone."""
        self._ways.lose(endpoint)
        self._paces.forget(endpoint)
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
        """Admit, post, collect, check, renew. Returns when to look again."""
        self._own.look(now)
        self._collect(now)
        self._check(now)
        for ticket in [ticket for ticket in self._unquiet if self._plane.quiet(ticket)]:
            del self._unquiet[ticket]
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
        if self._unchecked is not None and self._unchecked.busy:
            return now
        return self._renew_at if self.incoming else float("inf")

    def _collect(self, now: float) -> None:
        for completion in self._plane.progress():
            self._completed(completion, now)

    def _check(self, now: float) -> None:
        """Checked mode: the bytes that came must be those that were published."""
        if self._unchecked is None:
            return
        for incoming, block, digest in self._unchecked.turn():
            if incoming.state is not ReadState.PULLING:
                continue  # lost by an earlier block of this turn
            incoming.progressed = now
            if digest == incoming.said.digest(block):
                self._arrived(incoming, block, block + 1)
            else:
                reason = f"block {block} is corrupt: its bytes are not those that were published"
                self._lose(incoming, Event.CORRUPT, reason)

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
            incoming.local = memoryview(array("i", incoming.pages))
            incoming.skipped = incoming.asked = len(skipped)
            incoming.reserved = incoming.progressed = now
            incoming.state = self.moves.reader(incoming.state, Event.RESERVED)

    def _advance(self, incoming: Incoming, now: float) -> None:
        first = incoming.first_tokens
        if first is not None and "" not in first.finish:
            self._end(incoming, Event.NOTHING_LEFT)
        elif incoming.state is ReadState.WAITING:
            if self._movement.stood(incoming.arrived, now) > self._settings.waiting_seconds:
                self._lose(incoming, Event.TIMED_OUT, "no pages became free in time")
        elif incoming.state is ReadState.PULLING:
            self._post(incoming)
            if any(self._own.late(read.limit) for read in incoming.reads.values()):
                self._paces.late(incoming.holder.endpoint)
                self._lose(incoming, Event.TIMED_OUT, Event.TIMED_OUT.value)
            elif incoming.state is not ReadState.PULLING or self._being_checked(incoming):
                return
            elif incoming.all_read:
                self._finish(incoming, now)
            elif not incoming.reads and now - incoming.progressed > self._settings.silence_seconds:
                self._lose(incoming, Event.TIMED_OUT, "the holder published nothing for too long")

    def _being_checked(self, incoming: Incoming) -> bool:
        return self._unchecked is not None and self._unchecked.waits(incoming)

    def _post(self, incoming: Incoming) -> None:
        endpoint = incoming.holder.endpoint
        said, known = incoming.said, incoming.said.count
        if incoming.asked >= known or not self._ways.is_open(endpoint) or not self._vet(incoming):
            return
        start, incoming.asked = incoming.asked, known
        local = incoming.local[start:known]
        try:
            ticket = self._plane.read(
                endpoint,
                said.pages(start, known),
                local,
                said.generations(start, known),
            )
        except OutsidePool as error:
            self._object(incoming, (Offence.OUT_OF_RANGE, str(error)))
            return
        except PlaneError as error:
            self._lose(incoming, Event.READ_FAILED, str(error))
            return
        self._pool.expect(("read", ticket), local)
        self._by_ticket[ticket] = incoming
        size = (known - start) * self._settings.page_bytes
        posted = self._own.now
        limit = posted + self._settings.read_seconds + self._paces.begun(endpoint, size)
        incoming.reads[ticket] = OpenRead(start, known, size, posted, limit)

    def _completed(self, completion: Completion, now: float) -> None:
        incoming = self._by_ticket.pop(completion.ticket, None)
        if incoming is None:
            return
        read = incoming.reads.pop(completion.ticket, None)
        good = completion.quiet and not completion.failed
        stale = completion.failed == STALE
        if good and read is not None:
            stale = not incoming.said.are_at(completion.generations, read.start, read.end)
            if not stale and self._unchecked is None and incoming.all_read:
                self._finish(incoming, now)  # first of all: the holder's pages wait for the word
        if completion.quiet:
            self._pool.quiet(("read", completion.ticket))
        else:
            self._unquiet[completion.ticket] = incoming
        if read is None:
            return  # ended before; only the quiet above mattered
        seconds = self._own.now - read.posted if good else 0.0
        self._paces.ended(incoming.holder.endpoint, read.size, seconds)
        if stale:
            self._lose(incoming, Event.STALE, Event.STALE.value)
        elif not good:
            reason = completion.failed or "the plane does not say that it has ended"
            self._lose(incoming, Event.READ_FAILED, reason)
        elif self._unchecked is None:
            incoming.progressed = now
            self._arrived(incoming, read.start, read.end)
        else:
            self._unchecked.add(incoming, read.start, incoming.pages[read.start : read.end])

    def _arrived(self, incoming: Incoming, start: int, end: int) -> None:
        """Blocks start..end are ours and valid: full ones become findable by later prompts."""
        count = (end - start) * self._settings.page_bytes
        incoming.bytes_read += count
        self.bytes_read += count
        full = incoming.hashes[start:end]
        self._pool.seal_blocks(incoming.local[start : start + len(full)], full)

    # --- beginnings and ends -------------------------------------------------------------------

    def _handed(self, sender: Peer, handoff: Handoff, now: float) -> None:
        key = (sender.endpoint, handoff.lease)
        if key in self.incoming:
            return  # said twice
        fault = self._ways.past(sender) or objection_to_handoff(handoff, self._settings.vocabulary)
        hashes, tail = [], b""
        if fault is None:
            hashes, tail = hashes_of(handoff, self._compatibility, self._settings.page_slots)
        self.incoming[key] = incoming = begun(handoff, sender, now, hashes, tail)
        if fault is not None:
            self._object(incoming, fault)
        elif incoming.total > self._pool.page_count:
            reason = f"{incoming.total} pages are needed, and there are {self._pool.page_count}"
            self._lose(incoming, Event.REFUSED, reason)
        else:
            self._ways.make(sender)

    def _published(self, incoming: Incoming, message: Published, now: float) -> None:
        fault = take_in(incoming, message, self._settings.vocabulary, now)
        if fault is not None:
            self._object(incoming, fault)
        elif self._ways.is_open(incoming.holder.endpoint):
            self._vet(incoming)

    def _vet(self, incoming: Incoming) -> bool:
        """Every block so far is one of this prompt's? If the workers misfit, that is the reason."""
        fault = objection_to_content(incoming, self._unchecked is not None)
        if fault is not None:
            self._object(incoming, fault)
        return fault is None

    def _object(self, incoming: Incoming, fault: Fault) -> None:
        """The holder said what cannot be: nothing more of this hand-over is believed."""
        self._refusals.add(incoming.holder, fault)
        self._lose(incoming, Event.REFUSED, fault[1])

    def _finish(self, incoming: Incoming, now: float) -> None:
        incoming.state = self.moves.reader(incoming.state, Event.ALL_READ)
        incoming.completed = now
        del self.incoming[incoming.holder.endpoint, incoming.handoff.lease]
        self._transport.send(incoming.holder.endpoint, Release(incoming.handoff.lease))
        self.complete.append(incoming)

    def _lose_all(self, endpoint: str, event: Event, reason: str) -> None:
        for incoming in [one for one in self.incoming.values() if one.holder.endpoint == endpoint]:
            self._lose(incoming, event, reason)

    def _lose(self, incoming: Incoming, event: Event, reason: str) -> None:
        """Ended without its sequence, and not by the router's wish."""
        self._end(incoming, event)
        self.lost.append(Lost(incoming.handoff, event, reason))

    def _end(self, incoming: Incoming, event: Event) -> None:
        incoming.state = self.moves.reader(incoming.state, event)
        del self.incoming[incoming.holder.endpoint, incoming.handoff.lease]
        for ticket, read in incoming.reads.items():
            self._plane.abandon(ticket)
            self._paces.ended(incoming.holder.endpoint, read.size)
        incoming.reads.clear()
        if self._unchecked is not None:
            self._unchecked.drop(incoming)
        self._pool.release(incoming.pool_holder)
        if event not in (Event.PEER_LOST, Event.EXPIRED):
            self._transport.send(incoming.holder.endpoint, Release(incoming.handoff.lease))

    def _renew(self) -> None:
        by_holder: dict[str, list[Incoming]] = {}
        for incoming in self.incoming.values():
            by_holder.setdefault(incoming.holder.endpoint, []).append(incoming)
        for endpoint, ones in by_holder.items():
            self._ways.repeat(endpoint)
            for start in range(0, len(ones), MOST_RENEWED):
                part = ones[start : start + MOST_RENEWED]
                known = [one.said.count for one in part]
                self._transport.send(endpoint, Renew([one.handoff.lease for one in part], known))
