"""A reader's connection to one holder: the handshake, asks on their way, answers into memory.

Knows tickets and lengths; where a body belongs is asked of the plane when its header has come. All
bytes land inside `hear`, so what was forgotten lands nowhere from that moment on: the rest of it
is received into a scratch buffer.
"""

import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .tcp_wire import (
    ANSWER,
    GREETING_BYTES,
    LARGEST_REASON,
    NONCE_BYTES,
    PROOF_BYTES,
    TAG,
    Answered,
    Buffers,
    Metadata,
    connecting,
    proof,
    proven,
)

RECEIVE_BYTES = 2 << 20  # in one system call
WAKE_BYTES = 512 << 10  # of a body, before its arrival is worth waking for
SCRATCH_BYTES = 256 << 10


class LinkLost(Exception):
    """The connection is of no use any more; the text says why."""


class Forged(Exception):
    """The holder said what no holder of ours says."""


@dataclass(slots=True, eq=False)
class Part:
    """What one ask is to bring. `pages`: of its read; None asks for the generations of all."""

    ticket: int
    pages: slice | None
    length: int
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """One ask's end. `payload` is empty for bodies, which are in memory already."""

    part: Part
    kind: Answered
    payload: bytes


class Link:
    """Connects at once and never blocks. Raises OSError or ValueError where there is no way."""

    def __init__(self, words: Metadata, buffers: Callable[[Part], list[memoryview]]) -> None:
        self._token = words.token
        self._buffers = buffers
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._holder_nonce = b""
        self.ready = False  # both sides have proven themselves
        self.ahead = 0  # bytes asked for and not yet here
        self._parts: deque[Part] = deque()  # without an answer, oldest first
        self._unsent = bytearray()
        self._lazy = False  # not readable before `WAKE_BYTES` are there
        self._small = memoryview(bytearray(max(GREETING_BYTES, PROOF_BYTES)))
        self._header = self._small[:GREETING_BYTES]  # or the handshake's next frame
        self._filling = Buffers([self._header])
        self._kind: Answered | None = None  # of the answer whose body is being received
        self._payload = bytearray()
        self._scratch = memoryview(bytearray(0))
        self._socket = connecting(words.host, words.port)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self, part: Part, frame: bytes) -> None:
        self._parts.append(part)
        self.ahead += part.length
        self._unsent += frame

    def forget(self, ticket: int) -> None:
        """No byte of this ticket lands in its pages any more."""
        for part in self._parts:
            if part.ticket == ticket:
                part.wanted = False
        if self._kind is Answered.BODY and self._parts[0].ticket == ticket:
            self._filling = Buffers(self._nowhere(self._filling.left))

    def hear(self, most_bytes: int) -> Iterator[Answer | int]:
        """What ends, and the bytes received by each call, until nothing more is there.

        Raises LinkLost or Forged, after all that came before.
        """
        self.flush()
        while most_bytes > 0:
            if self._filling.left:
                if not (received := self._receive(min(RECEIVE_BYTES, most_bytes))):
                    return
                most_bytes -= received
                yield received
            if self._filling.left:
                continue
            if not self.ready:
                self._shake_hands()
            elif self._kind is None:
                self._begin()
            else:
                yield self._ended()

    def _receive(self, most_bytes: int) -> int:
        """Bytes that were there; 0 where none are yet."""
        try:
            received = self._socket.recvmsg_into(self._filling.window(most_bytes))[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(os.strerror(error.errno or 0)) from error
        if not received:
            raise LinkLost("it closed the connection")
        self._filling.advance(received)
        if self._lazy and self._filling.left < WAKE_BYTES:
            self._wake_at(1)
        return received

    def _wake_at(self, least: int) -> None:
        """Be readable from so many bytes on. As many must be on their way for sure."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        self._lazy = least > 1

    def flush(self) -> None:
        """Send what was asked. All of it at once: each call costs the wire a packet."""
        if self._unsent and self.ready:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                pass
            except OSError as error:
                raise LinkLost(os.strerror(error.errno or 0)) from error

    def _shake_hands(self) -> None:
        heard = bytes(self._header)
        if not self._holder_nonce:
            if not heard.startswith(TAG):
                raise Forged("it speaks another protocol")
            self._holder_nonce = heard[len(TAG) :]
            ours = proof(self._token, b"reader", self._holder_nonce, self._nonce)
            try:
                self._socket.send(TAG + self._nonce + ours)
            except OSError as error:
                raise LinkLost(os.strerror(error.errno or 0)) from error
            self._expect(PROOF_BYTES)
            return
        if not proven(heard, self._token, b"holder", self._holder_nonce, self._nonce):
            raise Forged("its proof is of another token")
        self.ready = True
        self._expect(ANSWER.size)
        self.flush()

    def _expect(self, length: int) -> None:
        self._header = self._small[:length]
        self._filling = Buffers([self._header])

    def _begin(self) -> None:
        """A header has come: its body goes where it belongs."""
        number, ticket, length = ANSWER.unpack(self._header)
        if not self._parts or self._parts[0].ticket != ticket:
            raise Forged("an answer to nothing")
        part = self._parts[0]
        fits = {
            Answered.BODY: part.pages is not None and length == part.length,
            Answered.GENERATIONS: part.pages is None and length == part.length,
            Answered.REFUSED: length <= LARGEST_REASON,
        }
        if not fits.get(number, False):
            raise Forged(f"answer {number} of {length} bytes where {part.length} were asked for")
        self._kind = Answered(number)
        if self._kind is not Answered.BODY:
            self._payload = bytearray(length)
            self._filling = Buffers([memoryview(self._payload)])
        elif part.wanted:
            self._filling = Buffers(self._buffers(part))
        else:
            self._filling = Buffers(self._nowhere(length))
        if self._filling.left >= WAKE_BYTES:
            self._wake_at(WAKE_BYTES)

    def _ended(self) -> Answer:
        part, kind = self._parts.popleft(), self._kind
        assert kind is not None
        self.ahead -= part.length
        self._kind = None
        self._expect(ANSWER.size)
        payload, self._payload = bytes(self._payload), bytearray()
        return Answer(part, kind, payload)

    def _nowhere(self, length: int) -> list[memoryview]:
        if not len(self._scratch):
            self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        whole, rest = divmod(length, SCRATCH_BYTES)
        return [self._scratch] * whole + [self._scratch[:rest]]
