"""The tcp plane: pages over raw sockets, for trusted networks without NIXL. Not encrypted.

The reader asks for parts of a read, a bounded number of bytes ahead, and receives each body
straight into its pages: every byte lands inside `progress`, so a read is quiet the moment it
completes or is abandoned. What lies on the wire then is received into nothing. Cut links are
noticed by the kernel's probes; a read's deadline belongs to the hand-over.
"""

import logging
import select
from collections import deque
from dataclasses import dataclass
from time import perf_counter

import msgspec
import numpy

from .asked_read import NO_COUNTERS, NO_PAGES, AskedRead, AskedReads
from .known_peers import KnownPeer, KnownPeers
from .plane import STALE, Completion, Numbers, PlaneError, PlaneSettings
from .targets import MOST_PAGES, page_bytes_view, pages_of_read, require_host_memory
from .tcp_holder import Holder
from .tcp_link import Answer, Forged, Link, LinkLost, Part
from .tcp_wire import Answered, Asked, Metadata, ask_frame, page_parts

PART_BYTES = 4 << 20
BYTES_AHEAD = 16 << 20  # asked for and not yet here, per peer; also what an abandoned read may cost
TURN_BYTES = 2 << 20  # from one peer before the next has its turn
SECONDS_PER_CALL = 0.0008  # for each of the two halves
CLEAR = "not encrypted"

log = logging.getLogger("penstock.tcp")


@dataclass(slots=True, eq=False)
class _Peer(KnownPeer[Metadata]):
    link: Link | None = None


class TcpPlane:
    """Reads peers' pages over TCP and lets peers read ours."""

    name = "tcp"
    holder_poll_seconds = 0.005  # `wake` says earlier when there is something to send

    def __init__(self, settings: PlaneSettings, note: str = "") -> None:
        require_host_memory(settings.memory, self.name)
        self._memory = settings.memory
        self._bytes_per_call = max(1, settings.bytes_per_post)
        part = min(PART_BYTES, self._bytes_per_call)
        self._pages_per_part = max(1, part // self._memory.page_bytes)
        self._poll = select.epoll()
        try:
            self._holder = Holder(settings, self._poll)
        except PlaneError:
            self._poll.close()
            raise
        self._metadata = msgspec.msgpack.encode(self._holder.metadata)
        self._pages = page_bytes_view(self._memory)
        self._peers: KnownPeers[Metadata, _Peer] = KnownPeers(
            self.name, Metadata, self._memory.page_bytes
        )
        self._linked: dict[int, _Peer] = {}  # by the descriptor of its link
        self._reads: AskedReads[_Peer] = AskedReads(self._memory.page_count)
        self._turns = 0
        self._refused = 0
        self._closed = False
        self.path = f"tcp (raw sockets, {CLEAR})" + (f"; {note}" if note else "")
        if settings.curve is not None:
            self.path += "; the cluster's keys protect control only"
            log.warning("kv transport tcp: pages are sent %s although there are keys", CLEAR)

    @property
    def refused(self) -> int:
        """Connections, asks and answers that were forged, cut or out of range, on both sides."""
        return self._refused + self._holder.refused

    @property
    def connections(self) -> int:
        """Readers connected to us."""
        return self._holder.connections

    @property
    def wake(self) -> int:
        return self._poll.fileno()

    def metadata(self) -> bytes:
        return self._metadata

    # Peers

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        if (words := self._peers.news(endpoint, incarnation, metadata)) is None:
            return
        peer = _Peer(endpoint, incarnation, metadata, words)
        self._connect(peer)  # now, so that the first read finds it connected
        self.remove_peer(endpoint)
        self._peers.add(peer)

    def remove_peer(self, endpoint: str) -> None:
        if peer := self._peers.remove(endpoint):
            self._disconnect(peer, "the peer was removed")

    def _connect(self, peer: _Peer) -> None:
        try:
            peer.link = Link(peer.words, self._places)
        except (OSError, OverflowError, ValueError) as error:
            raise PlaneError(f"{peer.endpoint} is at no usable address: {error}") from error
        self._linked[peer.link.fileno()] = peer
        self._poll.register(peer.link, select.EPOLLIN)

    def _disconnect(self, peer: _Peer, reason: str) -> None:
        if peer.link is not None:
            del self._linked[peer.link.fileno()]
            peer.link.close()
            peer.link = None
        self._reads.end_all_of(peer, reason)

    # Reads

    def read(
        self, endpoint: str, remote: Numbers, local: Numbers, expected: Numbers | None = None
    ) -> int:
        peer = self._peers.named(endpoint)
        ours = self._memory.page_count
        named = pages_of_read(remote, local, expected, peer.words.page_count, ours, MOST_PAGES)
        self._listen(peer)  # a connection that broke while nobody read is replaced
        if peer.link is None:
            self._connect(peer)
        return self._reads.begin(peer, *named)

    def abandon(self, ticket: int) -> None:
        if read := self._reads.get(ticket):
            self._fail(read, "abandoned")

    def quiet(self, ticket: int) -> bool:
        return ticket not in self._reads

    def progress(self) -> list[Completion]:
        if self._closed:
            return []
        waiting: deque[_Peer] = deque()
        for descriptor, events in self._poll.poll(0):
            if peer := self._linked.get(descriptor):
                waiting.append(peer)
            else:
                self._holder.hear(descriptor, events)
        self._holder.progress(self._bytes_per_call, perf_counter() + SECONDS_PER_CALL)
        for read in self._reads:
            self._ask(read)
        waiting.rotate(self._turns)
        self._turns += 1
        left, until = self._bytes_per_call, perf_counter() + SECONDS_PER_CALL
        while waiting and left > 0:
            peer = waiting.popleft()
            if received := self._listen(peer):
                left -= received
                waiting.append(peer)
            if perf_counter() > until:
                break
        return self._reads.take_ended()

    @property
    def busy(self) -> bool:
        return bool(self._reads) or self._holder.busy

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for peer in self._peers:
            self._disconnect(peer, "closed")
        self._peers.clear()
        self._holder.close()
        self._poll.close()

    def _fail(self, read: AskedRead[_Peer], reason: str) -> None:
        if read.peer.link is not None:
            read.peer.link.forget(read.ticket)
        self._reads.end(read, reason)

    # Asking

    def _ask(self, read: AskedRead[_Peer]) -> None:
        link, size = read.peer.link, self._memory.page_bytes
        if link is None or not link.ready:
            return
        try:
            while read.pages_left and link.ahead < BYTES_AHEAD:
                part = read.next_part(self._pages_per_part)
                frame = ask_frame(Asked.PAGES, read.ticket, read.remote[part], *read.guarded(part))
                read.asked = part.stop
                link.ask(Part(read.ticket, part, (part.stop - part.start) * size), frame)
            if read.generations_left:
                read.asked_generations = True
                frame = ask_frame(
                    Asked.GENERATIONS, read.ticket, read.remote, NO_PAGES, NO_COUNTERS
                )
                link.ask(Part(read.ticket, None, 8 * len(read.remote)), frame)
            link.flush()
        except LinkLost as error:
            self._lost(read.peer, str(error))

    # Hearing

    def _places(self, part: Part) -> list[memoryview]:
        """Where the body of a part belongs."""
        read = self._reads.get(part.ticket)
        assert read is not None  # what has ended was forgotten by the link
        local = read.local[part.pages]
        return page_parts(self._pages, self._memory.page_bytes, local.tolist())

    def _listen(self, peer: _Peer) -> int:
        """Bytes received."""
        if peer.link is None:
            return 0
        received = 0
        try:
            for heard in peer.link.hear(min(TURN_BYTES, self._bytes_per_call)):
                if isinstance(heard, int):
                    received += heard
                elif read := self._reads.get(heard.part.ticket):
                    self._take(read, heard)
        except Forged as error:
            self._refused += 1
            log.warning("%s sent a forged answer: %s", peer.endpoint, error)
            self._disconnect(peer, f"{peer.endpoint} sent a forged answer: {error}")
        except LinkLost as error:
            self._lost(peer, str(error))
        return received

    def _lost(self, peer: _Peer, reason: str) -> None:
        self._disconnect(peer, f"{peer.endpoint} was lost: {reason}")

    def _take(self, read: AskedRead[_Peer], answer: Answer) -> None:
        match answer.kind:
            case Answered.REFUSED:
                reason = answer.payload.decode(errors="replace")
                stale = reason == STALE
                self._fail(read, STALE if stale else f"{read.peer.endpoint} refused: {reason}")
            case Answered.GENERATIONS:
                values = numpy.frombuffer(answer.payload, dtype="<u8").tolist()
                self._reads.end(read, "", tuple(values))
            case Answered.BODY:
                pass  # in place
