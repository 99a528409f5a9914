"""The holder's half of the ZeroMQ plane: answers asks for pages, and what both halves say.

An ask names pages; the answer is one header frame and one body frame, the pages in the order
asked. An ask may say at which generations pages must still be: where one is not, nothing is sent.
The body is gathered into a buffer of ours before ZeroMQ sees it, so a page granted again while the
body waits in a queue changes nothing, and a peer that stands still never keeps a page.
Asks of one peer are answered in order, so the counters asked for last were read after every body
was copied out: that order is the whole safety of the plane.

A peer proves by the token in our metadata that the control plane knows it. What cannot be parsed
or carries another token is counted, and its connection is deaf from then on (ZeroMQ cannot close
one connection of many; an oversized frame it does cut by itself).
"""

import hmac
import secrets
from collections import deque

import msgspec
import numpy
import zmq

from ..protocol.memory import PageMemory
from .plane import STALE, PlaneError, PlaneSettings
from .targets import Indices, generations_array, page_bytes_view, page_indices, runs

LARGEST_ASK = 4 << 20  # bytes of one ask; a quarter of a million page ids and generations
LARGEST_BODY = 64 << 20
MOST_HEARD = 1024  # asks per call, so that a flood of them cannot hold the loop
HEARTBEAT_MS = 2_000  # answered by ZeroMQ's own thread: only a dead host or link misses them
HEARTBEAT_LOST_MS = 6_000


class Metadata(msgspec.Struct, frozen=True, array_like=True, tag="zmq-2"):
    address: str
    token: bytes
    curve: bytes  # the holder's public key, b"" in the clear
    page_bytes: int
    page_count: int


class AskPages(msgspec.Struct, frozen=True, array_like=True, tag=1):
    token: bytes
    ticket: int
    pages: bytes  # little-endian int32
    guarded: bytes = b""  # pages, in the first ask of a read all of them, which must be ...
    expected: bytes = b""  # ... at these generations, little-endian uint64


class AskGenerations(msgspec.Struct, frozen=True, array_like=True, tag=2):
    token: bytes
    ticket: int
    pages: bytes


class Body(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Header of a body frame."""

    ticket: int


class Generations(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Header of a frame of little-endian uint64."""

    ticket: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    ticket: int
    reason: str


Ask = AskPages | AskGenerations
Answer = Body | Generations | Refused

ASK = msgspec.msgpack.Decoder(Ask)
ANSWER = msgspec.msgpack.Decoder(Answer)
ENCODE = msgspec.msgpack.Encoder().encode


class Holder:
    """A ROUTER that peers read our pages from."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], settings: PlaneSettings) -> None:
        self._memory: PageMemory = settings.memory
        self._pages = page_bytes_view(settings.memory)
        self._counters = generations_array(settings.memory)
        self._token = secrets.token_bytes(16)
        self._asks: dict[bytes, deque[Ask]] = {}  # per connection, served in turn
        self._deaf: set[bytes] = set()
        self._spare = bytearray()
        self.refused = 0
        self._socket = context.socket(zmq.ROUTER)
        prepare(self._socket)
        # Fail rather than lose an answer in silence when a peer is gone or takes nothing.
        self._socket.router_mandatory = True
        self._socket.maxmsgsize = LARGEST_ASK
        public = b""
        if settings.curve is not None:
            public, self._socket.curve_secretkey = settings.curve
            self._socket.curve_publickey = public
            self._socket.curve_server = True
        try:
            port = self._socket.bind_to_random_port(f"tcp://{settings.host}")
        except zmq.ZMQError as error:
            self._socket.close()
            raise PlaneError(f"the zmq plane cannot listen on {settings.host}: {error}") from error
        self.metadata = Metadata(
            address=f"tcp://{settings.host}:{port}",
            token=self._token,
            curve=public,
            page_bytes=self._memory.page_bytes,
            page_count=self._memory.page_count,
        )

    @property
    def busy(self) -> bool:
        return bool(self._asks)

    def progress(self, bytes_per_call: int) -> None:
        for _ in range(MOST_HEARD):
            if not self._socket.poll(0):
                break
            self._hear(self._socket.recv_multipart())
        left = bytes_per_call
        for connection in list(self._asks):
            asks = self._asks[connection]
            while asks and left > 0:
                sent = self._answer(connection, asks[0])
                if sent < 0:  # the peer takes nothing just now
                    break
                asks.popleft()
                left -= sent
            # Back of the queue, so that one peer with many asks does not starve the others.
            del self._asks[connection]
            if asks:
                self._asks[connection] = asks

    def close(self) -> None:
        self._socket.close(linger=0)
        self._asks.clear()
        self._pages.release()

    def _hear(self, frames: list[bytes]) -> None:
        connection = frames[0]
        if connection in self._deaf:
            return
        try:
            if len(frames) != 2:
                raise ValueError("an ask is one frame")
            ask = ASK.decode(frames[1])
            if not hmac.compare_digest(ask.token, self._token):
                raise ValueError("not our token")
            if len(ask.pages) % 4:
                raise ValueError("cut page ids")
            if isinstance(ask, AskPages):
                if len(ask.guarded) % 4 or len(ask.guarded) * 2 != len(ask.expected):
                    raise ValueError("cut generations")
        except (msgspec.MsgspecError, ValueError):
            self.refused += 1
            if len(self._deaf) >= 4096:
                self._deaf.clear()  # each of them would be refused again
            self._deaf.add(connection)
            self._asks.pop(connection, None)
            self._send(connection, Refused(0, "an ask without our token or not to be read"), b"")
            return
        self._asks.setdefault(connection, deque()).append(ask)

    def _answer(self, connection: bytes, ask: Ask) -> int:
        """Bytes sent, or -1 where the ask must wait."""
        try:
            pages = self._named(ask.pages)
            if isinstance(ask, AskGenerations):
                return self._send_generations(connection, ask.ticket, pages)
            length = len(pages) * self._memory.page_bytes
            if length > max(LARGEST_BODY, self._memory.page_bytes):
                raise PlaneError(f"{length} bytes in one ask")
            if ask.guarded:
                now = self._counters[self._named(ask.guarded)]
                if (now != numpy.frombuffer(ask.expected, dtype="<u8")).any():
                    return self._send(connection, Refused(ask.ticket, STALE), b"")
            return self._send_body(connection, ask.ticket, pages)
        except PlaneError as error:
            self.refused += 1
            return self._send(connection, Refused(ask.ticket, str(error)), b"")

    def _named(self, pages: bytes) -> Indices:
        return page_indices(numpy.frombuffer(pages, "<i4"), self._memory.page_count, "remote")

    def _send_body(self, connection: bytes, ticket: int, pages: Indices) -> int:
        size = self._memory.page_bytes
        length = len(pages) * size
        buffer = self._spare if len(self._spare) >= length else bytearray(length)
        self._spare = buffer
        with memoryview(buffer) as whole:
            at = 0
            for first, _, count in runs(pages, numpy.arange(len(pages), dtype=numpy.int32)):
                end = at + count * size
                whole[at:end] = self._pages[first * size : (first + count) * size]
                at = end
        return self._send(connection, Body(ticket), memoryview(buffer)[:length])

    def _send_generations(self, connection: bytes, ticket: int, pages: Indices) -> int:
        values = self._counters[pages].astype("<u8")
        return self._send(connection, Generations(ticket), values.tobytes())

    def _send(self, connection: bytes, header: Answer, body: bytes | memoryview) -> int:
        try:
            self._socket.send_multipart([connection, ENCODE(header)], zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return -1
        except zmq.ZMQError:  # gone: nobody waits for this answer any more
            return 0
        self._socket.send(body, zmq.NOBLOCK)
        return len(body)


def prepare(socket: zmq.Socket[bytes]) -> None:
    """What both ends' sockets have in common."""
    socket.linger = 0
    socket.ipv6 = True
    socket.sndbuf = socket.rcvbuf = 4 << 20
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = HEARTBEAT_LOST_MS
