"""The ZeroMQ plane: pages over TCP sockets of ZeroMQ's, across hosts, without NIXL.

The reader asks for parts of a read, a bounded number of bytes ahead, and copies each body into its
pages when it arrives: every byte lands inside `progress`, so a read is quiet the moment it
completes or is abandoned. With a key pair everything is encrypted and the holder authenticated by
CURVE; a peer of the other kind is refused, never talked to in the clear.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy
import zmq
from zmq.utils.monitor import recv_monitor_message

from .asked_read import AskedRead, AskedReads
from .known_peers import KnownPeer, KnownPeers
from .plane import STALE, Completion, Numbers, PlaneError, PlaneSettings
from .targets import MOST_PAGES, Indices, page_bytes_view, pages_of_read, require_host_memory, runs
from .zmq_holder import (
    ANSWER,
    ENCODE,
    LARGEST_BODY,
    AskGenerations,
    AskPages,
    Body,
    Generations,
    Holder,
    Metadata,
    Refused,
    prepare,
)

PART_BYTES = 1 << 20
BYTES_AHEAD = 8 << 20  # asked for and not yet here, per peer: fills 5 GB/s at 1.6 ms of delay

LOST_EVENTS = {
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_CONNECT_RETRIED: "it cannot be reached",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the handshake failed: it speaks another protocol",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the handshake failed: it does not accept our key",
}


@dataclass(slots=True, eq=False)
class _Peer(KnownPeer[Metadata]):
    socket: Any = None
    monitor: Any = None
    # Asks without an answer, oldest first: a holder gives each exactly one answer, in order.
    expected: deque["_Expected"] = field(default_factory=deque)
    bytes_ahead: int = 0


@dataclass(frozen=True, slots=True)
class _Expected:
    ticket: int
    part: slice | None  # of the read's pages; None: the generations of all of them
    length: int


class ZmqPlane:
    """Reads peers' pages over ZeroMQ and lets peers read ours."""

    name = "zmq"
    wake = -1
    holder_poll_seconds = 0.0005  # the holder sends the bodies itself

    def __init__(self, settings: PlaneSettings, note: str = "") -> None:
        require_host_memory(settings.memory, self.name)
        self._memory = settings.memory
        self._curve = settings.curve
        self._bytes_per_call = max(1, settings.bytes_per_post)
        part = min(PART_BYTES, self._bytes_per_call)
        self._pages_per_part = max(1, part // self._memory.page_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._holder = Holder(self._context, settings)
        except PlaneError:
            self._context.term()
            raise
        self._pages = page_bytes_view(self._memory)
        self._peers: KnownPeers[Metadata, _Peer] = KnownPeers(
            self.name, Metadata, self._memory.page_bytes
        )
        self._reads: AskedReads[_Peer] = AskedReads(self._memory.page_count)
        self._refused = 0
        secrecy = "CURVE" if self._curve else "in the clear"
        self.path = f"zmq {zmq.zmq_version()} tcp ({secrecy})" + (f"; {note}" if note else "")

    @property
    def refused(self) -> int:
        """Asks and answers that were forged, cut or out of range, here and on the holder's side."""
        return self._refused + self._holder.refused

    def metadata(self) -> bytes:
        return ENCODE(self._holder.metadata)

    # Peers

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        if (words := self._peers.news(endpoint, incarnation, metadata)) is None:
            return
        if bool(words.curve) != bool(self._curve):
            theirs, ours = ("with", "without") if words.curve else ("without", "with")
            raise PlaneError(
                f"{endpoint} runs {theirs} CURVE keys, we run {ours}: give both a pair"
            )
        peer = _Peer(endpoint, incarnation, metadata, words)
        self._connect(peer)
        self.remove_peer(endpoint)
        self._peers.add(peer)

    def remove_peer(self, endpoint: str) -> None:
        if peer := self._peers.remove(endpoint):
            self._disconnect(peer, "the peer was removed")

    def _connect(self, peer: _Peer) -> None:
        socket = self._context.socket(zmq.DEALER)
        prepare(socket)
        socket.maxmsgsize = max(LARGEST_BODY, self._memory.page_bytes)
        monitor = None
        try:
            if self._curve is not None:
                socket.curve_publickey, socket.curve_secretkey = self._curve
                socket.curve_serverkey = peer.words.curve
            monitor = socket.get_monitor_socket(sum(LOST_EVENTS))
            socket.connect(peer.words.address)
        except (zmq.ZMQError, ValueError) as error:
            _close(socket, monitor)
            raise PlaneError(f"{peer.endpoint} is at no usable address: {error}") from error
        peer.socket, peer.monitor = socket, monitor

    def _disconnect(self, peer: _Peer, reason: str) -> None:
        self._reads.end_all_of(peer, reason)
        if peer.socket is not None:
            _close(peer.socket, peer.monitor)
            peer.socket = peer.monitor = None
        peer.expected.clear()
        peer.bytes_ahead = 0

    # Reads

    def read(
        self, endpoint: str, remote: Numbers, local: Numbers, expected: Numbers | None = None
    ) -> int:
        peer = self._peers.named(endpoint)
        ours = self._memory.page_count
        named = pages_of_read(remote, local, expected, peer.words.page_count, ours, MOST_PAGES)
        self._notice_loss(peer)  # a connection that broke while nobody read is replaced
        if peer.socket is None:
            self._connect(peer)
        return self._reads.begin(peer, *named)

    def abandon(self, ticket: int) -> None:
        if read := self._reads.get(ticket):
            self._reads.end(read, "abandoned")

    def quiet(self, ticket: int) -> bool:
        return ticket not in self._reads

    def progress(self) -> list[Completion]:
        self._holder.progress(self._bytes_per_call)
        for read in self._reads:
            self._ask(read)
        for peer in self._peers:
            if peer.expected:
                self._listen(peer)
        return self._reads.take_ended()

    @property
    def busy(self) -> bool:
        return bool(self._reads) or self._holder.busy

    def close(self) -> None:
        if self._context.closed:
            return
        for peer in self._peers:
            self._disconnect(peer, "closed")
        self._peers.clear()
        self._holder.close()
        self._context.term()
        self._pages.release()

    # Asking

    def _ask(self, read: AskedRead[_Peer]) -> None:
        peer, token, size = read.peer, read.peer.words.token, self._memory.page_bytes
        while read.pages_left and peer.bytes_ahead < BYTES_AHEAD:
            part = read.next_part(self._pages_per_part)
            guarded, expected = read.guarded(part)
            ask = AskPages(
                *(token, read.ticket, _wire(read.remote[part])),
                *(_wire(guarded), expected.astype("<u8").tobytes()),
            )
            if not self._send(peer, ask, part, (part.stop - part.start) * size):
                return
            read.asked = part.stop
        if read.generations_left:
            ask = AskGenerations(token, read.ticket, _wire(read.remote))
            read.asked_generations = self._send(peer, ask, None, 8 * len(read.remote))

    def _send(
        self, peer: _Peer, ask: AskPages | AskGenerations, part: slice | None, length: int
    ) -> bool:
        try:
            peer.socket.send(ENCODE(ask), zmq.NOBLOCK)
        except zmq.Again:
            return False
        peer.expected.append(_Expected(ask.ticket, part, length))
        peer.bytes_ahead += length
        return True

    # Hearing

    def _listen(self, peer: _Peer) -> None:
        left = self._bytes_per_call
        try:
            while left > 0 and peer.socket.events & zmq.POLLIN:
                frames = peer.socket.recv_multipart(copy=False)
                left -= sum(len(frame) for frame in frames)
                self._take(peer, frames)
        except (msgspec.MsgspecError, ValueError) as error:
            self._refused += 1
            self._disconnect(peer, f"{peer.endpoint} sent a forged answer: {error}")
            return
        except PlaneError as error:
            self._disconnect(peer, str(error))
            return
        if left > 0:  # a connection may break with answers still unread: those come first
            self._notice_loss(peer)

    def _notice_loss(self, peer: _Peer) -> None:
        while peer.socket is not None and peer.monitor.events & zmq.POLLIN:
            event = recv_monitor_message(peer.monitor, zmq.NOBLOCK)["event"]
            if reason := LOST_EVENTS.get(event):
                self._disconnect(peer, f"{peer.endpoint} was lost: {reason}")

    def _take(self, peer: _Peer, frames: Sequence[zmq.Frame]) -> None:
        """One answer. Raises ValueError or MsgspecError where it is not what was asked for."""
        if len(frames) != 2:
            raise ValueError(f"{len(frames)} frames where two belong")
        header, body = ANSWER.decode(frames[0].buffer), frames[1].buffer
        if isinstance(header, Refused) and header.ticket == 0:
            raise PlaneError(f"{peer.endpoint} refuses us: {header.reason}")
        if not peer.expected or peer.expected[0].ticket != header.ticket:
            raise ValueError("an answer to nothing")
        expected = peer.expected.popleft()
        peer.bytes_ahead -= expected.length
        read = self._reads.get(expected.ticket)  # None: abandoned meanwhile
        match header:
            case Refused(_, reason):
                if read is not None:
                    failed = STALE if reason == STALE else f"{peer.endpoint} refused: {reason}"
                    self._reads.end(read, failed)
            case Body() | Generations():
                generations = isinstance(header, Generations)
                if generations != (expected.part is None) or len(body) != expected.length:
                    raise ValueError(f"{len(body)} bytes where {expected.length} were asked for")
                if read is not None and expected.part is not None:
                    self._copy(read, expected.part, body)
                elif read is not None:
                    values = numpy.frombuffer(body, dtype="<u8").tolist()
                    self._reads.end(read, "", tuple(values))

    def _copy(self, read: AskedRead[_Peer], part: slice, body: memoryview) -> None:
        size = self._memory.page_bytes
        local = read.local[part]
        for first, at, count in runs(local, numpy.arange(len(local), dtype=numpy.int32)):
            page = self._pages[first * size : (first + count) * size]
            page[:] = body[at * size : (at + count) * size]


def _close(socket: Any, monitor: Any) -> None:
    if monitor is not None:
        socket.disable_monitor()
        monitor.close(linger=0)  # or the context would wait for it for ever
    socket.close(linger=0)


def _wire(pages: Indices) -> bytes:
    return pages.astype("<i4").tobytes()
