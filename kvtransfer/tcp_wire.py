"""What both ends of the tcp plane say, and how their sockets are set. Bytes only; no plane.

    holder -> reader   TAG nonce                        as soon as it has accepted
    reader -> holder   TAG nonce proof                  keyed by the token in the metadata
    holder -> reader   proof                            from here on asks and answers
    reader -> holder   ask header | pages | guarded pages | expected generations
    holder -> reader   answer header | body             one per ask, in the order of the asks

The token travels in the plane's metadata, which only authenticated peers get; a proof covers both
nonces, so that one that was overheard is worth nothing on another connection. Nothing is encrypted.
"""

import errno
import hashlib
import hmac
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec
import numpy

from .plane import PlaneError
from .targets import Counters, Indices

TAG = b"PENSTOK1"  # the protocol and its version
TOKEN_BYTES = 32
NONCE_BYTES = 16
PROOF_BYTES = 32
GREETING_BYTES = len(TAG) + NONCE_BYTES
INTRODUCTION_BYTES = GREETING_BYTES + PROOF_BYTES

ASK = struct.Struct("<B3xIIQ")  # kind, pages, guarded pages, ticket
ANSWER = struct.Struct("<B7xQQ")  # kind, ticket, bytes of the body
LARGEST_ASK = 4 << 20  # bytes; a quarter of a million pages with their generations
LARGEST_BODY = 64 << 20  # or one page, where that is more
LARGEST_REASON = 1000

MOST_BUFFERS = 256  # in one system call; the kernel takes 1024
SOCKET_BYTES = 4 << 20
IDLE_SECONDS = 2  # before a silent connection is probed, and between two probes
LOST_SECONDS = 6  # without an answer to data or probes: a cut link, a dead host


class Asked(IntEnum):
    PAGES = 1
    GENERATIONS = 2


class Answered(IntEnum):
    BODY = 1
    GENERATIONS = 2  # little-endian uint64
    REFUSED = 3  # why, as text


class Metadata(msgspec.Struct, frozen=True, array_like=True, tag="tcp-1"):
    host: str  # numbers, never a name: nobody looks it up on a loop
    port: int
    token: Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    page_bytes: int
    page_count: int


@dataclass(frozen=True, slots=True)
class Ask:
    """`guarded` pages must be at the `expected` generations, or the answer is a refusal."""

    kind: Asked
    ticket: int
    pages: Indices
    guarded: Indices
    expected: Counters


def proof(token: bytes, side: bytes, holder_nonce: bytes, reader_nonce: bytes) -> bytes:
    text = TAG + holder_nonce + reader_nonce
    return hashlib.blake2b(text, key=token, digest_size=PROOF_BYTES, person=side).digest()


def proven(said: bytes, token: bytes, side: bytes, holder: bytes, reader: bytes) -> bool:
    return hmac.compare_digest(said, proof(token, side, holder, reader))


def ask_frame(
    kind: Asked, ticket: int, pages: Indices, guarded: Indices, expected: Counters
) -> bytes:
    header = ASK.pack(kind, len(pages), len(guarded), ticket)
    numbers = (pages.astype("<i4"), guarded.astype("<i4"), expected.astype("<u8"))
    return header + b"".join(part.tobytes() for part in numbers)


def ask_bytes(heard: bytearray) -> int:
    """How long the ask at the head of `heard` is, its header being there. Raises ValueError."""
    kind, pages, guarded, _ = ASK.unpack_from(heard)
    length = 4 * pages + 12 * guarded
    if kind not in (Asked.PAGES, Asked.GENERATIONS):
        raise ValueError(f"an ask of kind {kind}")
    if length > LARGEST_ASK:
        raise ValueError(f"an ask of {length} bytes")
    return ASK.size + length


def parse_ask(frame: bytes) -> Ask:
    """A frame as long as `ask_bytes` says."""
    kind, pages, guarded, ticket = ASK.unpack_from(frame)
    at = ASK.size
    wanted = numpy.frombuffer(frame, "<i4", pages, at)
    at += 4 * pages
    watched = numpy.frombuffer(frame, "<i4", guarded, at)
    at += 4 * guarded
    return Ask(Asked(kind), ticket, wanted, watched, numpy.frombuffer(frame, "<u8", guarded, at))


class Buffers:
    """Memory to be filled or sent in order, as much of it at a time as one call should take."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = parts
        self._first = 0
        self.left = sum(map(len, parts))

    def window(self, most_bytes: int) -> list[memoryview]:
        """The next buffers, cut at `most_bytes`."""
        window = self._parts[self._first : self._first + MOST_BUFFERS]
        length = 0
        for place, part in enumerate(window):
            length += len(part)
            if length >= most_bytes:
                window[place] = part[: len(part) - (length - most_bytes)]
                return window[: place + 1]
        return window

    def advance(self, moved: int) -> None:
        self.left -= moved
        while moved:
            part = self._parts[self._first]
            if moved < len(part):
                self._parts[self._first] = part[moved:]
                return
            moved -= len(part)
            self._first += 1


def page_parts(whole: memoryview, page_bytes: int, pages: list[int]) -> list[memoryview]:
    """Where these pages lie, neighbours as one. A loop: numpy is slower for a part's few pages."""
    parts: list[memoryview] = []
    start = before = pages[0]
    for page in pages[1:]:
        if page != before + 1:
            parts.append(whole[start * page_bytes : (before + 1) * page_bytes])
            start = page
        before = page
    parts.append(whole[start * page_bytes : (before + 1) * page_bytes])
    return parts


def widen(link: socket.socket) -> None:
    """Large buffers, where the system grants them; otherwise its own, which grow by themselves.

    A smaller buffer asked for would stay as small, and was measured at half the speed.
    """
    for option, file in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
        with open(f"/proc/sys/net/core/{file}") as most:
            if int(most.read()) >= SOCKET_BYTES:
                link.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)


def prepare(link: socket.socket) -> None:
    """What both ends' connections have in common."""
    link.setblocking(False)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, IDLE_SECONDS)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


def listening(host: str) -> socket.socket:
    """A listening socket on `host`, a free port. Raises PlaneError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PlaneError(f"the tcp plane cannot listen on {host}: {error}") from error
    try:
        listener.setblocking(False)
        widen(listener)  # accepted connections inherit it, and the window's scale with it
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PlaneError(f"the tcp plane cannot listen on {host}: {error}") from error
    return listener


def connecting(host: str, port: int) -> socket.socket:
    """A socket on its way to a holder. Raises OSError or ValueError where there is no way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.inet_pton(family, host.partition("%")[0])  # a name would be looked up, which blocks
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        widen(link)
        prepare(link)
        code = link.connect_ex((host, port))
        if code not in (0, errno.EINPROGRESS):  # a later failure shows at the first recv
            raise OSError(code, os.strerror(code))
    except (OSError, OverflowError):
        link.close()
        raise
    return link
