"""The two ends of the tcp plane's wire, spoken by hand: a holder and its sockets, a forger."""

import socket
from collections.abc import Callable

import msgspec
import numpy

from penstock.kvtransfer.asked_read import NO_COUNTERS, NO_PAGES
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.plane import PlaneSettings
from penstock.kvtransfer.tcp_plane import TcpPlane
from penstock.kvtransfer.tcp_wire import (
    ANSWER,
    GREETING_BYTES,
    PROOF_BYTES,
    TAG,
    Asked,
    Metadata,
    ask_frame,
    proof,
)
from support.plane_world import until

PAGE_BYTES = 8 << 10
PAGE_COUNT = 4096  # 32 MB: more than any socket holds
NONCE = b"n" * 16
FORGERS_TOKEN = b"t" * 32


class Holding:
    """A plane that is read, in this process, and sockets that speak to it."""

    def __init__(self) -> None:
        self.memory = HostMemory(PAGE_BYTES, PAGE_COUNT)
        numpy.frombuffer(self.memory.pages, numpy.uint64)[:] = numpy.arange(
            PAGE_BYTES // 8 * PAGE_COUNT, dtype=numpy.uint64
        )
        self.plane = TcpPlane(PlaneSettings(self.memory.memory, "holder"))
        self.words = msgspec.msgpack.decode(self.plane.metadata(), type=Metadata)
        self.links: list[socket.socket] = []

    def pump(self) -> None:
        self.plane.progress()

    def link(self) -> socket.socket:
        link = socket.create_connection((self.words.host, self.words.port))
        link.setblocking(False)
        self.links.append(link)
        return link

    def hear(self, link: socket.socket, count: int) -> bytes:
        """So many bytes, or fewer where the holder closes before."""
        heard = bytearray()
        ended = False

        def step() -> None:
            nonlocal ended
            self.pump()
            try:
                received = link.recv(count - len(heard))
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = b""
            heard.extend(received)
            ended = not received

        until(lambda: ended or len(heard) == count, step, f"{count} bytes")
        return bytes(heard)

    def closes(self, link: socket.socket) -> bool:
        return self.hear(link, 1 << 20) == b""

    def reader(self, token: bytes = b"") -> socket.socket:
        """A connection that has proven itself, or was refused."""
        link = self.link()
        greeting = self.hear(link, GREETING_BYTES)
        assert greeting.startswith(TAG)
        nonce = greeting[len(TAG) :]
        link.send(TAG + NONCE + proof(token or self.words.token, b"reader", nonce, NONCE))
        said = self.hear(link, PROOF_BYTES)
        assert said in (b"", proof(self.words.token, b"holder", nonce, NONCE))
        return link

    def pages(self, *numbers: int) -> bytes:
        return b"".join(bytes(self.memory.page(number)) for number in numbers)

    def answer(self, link: socket.socket) -> tuple[int, int, bytes]:
        kind, ticket, length = ANSWER.unpack(self.hear(link, ANSWER.size))
        return kind, ticket, self.hear(link, length) if length else b""

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.plane.close()
        self.memory.close()


def ask(*pages: int, ticket: int = 1, kind: Asked = Asked.PAGES) -> bytes:
    return ask_frame(kind, ticket, numpy.array(pages, numpy.int32), NO_PAGES, NO_COUNTERS)


class Forger:
    """A holder that says what `talk(all it has heard, its nonce)` returns."""

    def __init__(self, talk: Callable[[bytes, bytes], bytes]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._link: socket.socket | None = None
        self._heard, self._said = bytearray(), 0
        port = self._listener.getsockname()[1]
        self.metadata = msgspec.msgpack.encode(
            Metadata("127.0.0.1", port, FORGERS_TOKEN, PAGE_BYTES, 64)
        )

    def step(self) -> None:
        try:
            if self._link is None:
                self._link = self._listener.accept()[0]
                self._link.setblocking(False)
            answer = self._talk(bytes(self._heard), NONCE)
            self._said += self._link.send(answer[self._said :])
            self._heard += self._link.recv(1 << 16)
        except (BlockingIOError, ConnectionError):
            pass

    def close(self) -> None:
        self._listener.close()
        if self._link is not None:
            self._link.close()


def honest(heard: bytes, nonce: bytes) -> bytes:
    """The handshake as it should be, and nothing more."""
    if len(heard) < GREETING_BYTES + PROOF_BYTES:
        return TAG + nonce
    return TAG + nonce + proof(FORGERS_TOKEN, b"holder", nonce, heard[len(TAG) : GREETING_BYTES])


def answering(answer: bytes) -> Callable[[bytes, bytes], bytes]:
    def talk(heard: bytes, nonce: bytes) -> bytes:
        asked = len(heard) > GREETING_BYTES + PROOF_BYTES
        return honest(heard, nonce) + (answer if asked else b"")

    return talk
