"""The holder's half of the tcp plane: proves its readers, answers their asks from the pages.

Bodies go from the pages to the kernel without a copy of ours. What the kernel has taken no longer
changes, and asks of one connection are answered in order, so the generations asked for last are
read after every byte of the pages was copied: that order is the whole safety of the plane. A
reader that stands still holds nothing but its place in the queue.

A connection that does not prove itself in time, says something that is no ask, or is one too many
is closed and counted; its host is named in the log once.
"""

import logging
import secrets
import select
import socket
from collections import deque
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from .plane import STALE, PlaneError, PlaneSettings
from .targets import Indices, generations_array, page_bytes_view, page_indices
from .tcp_wire import (
    ANSWER,
    ASK,
    GREETING_BYTES,
    INTRODUCTION_BYTES,
    LARGEST_BODY,
    LARGEST_REASON,
    NONCE_BYTES,
    TAG,
    TOKEN_BYTES,
    Answered,
    Ask,
    Asked,
    Buffers,
    Metadata,
    ask_bytes,
    listening,
    page_parts,
    parse_ask,
    prepare,
    proof,
    proven,
)

STRANGERS = 64  # connections that have not proven themselves; the oldest makes room
READERS = 1024  # that have
STRANGER_SECONDS = 5.0
TURN_BYTES = 2 << 20  # for one reader before the next has its turn
HEAR_BYTES = 256 << 10
NAMED_HOSTS = 256  # in the log

log = logging.getLogger("penstock.tcp")


@dataclass(slots=True, eq=False)
class _Reader:
    socket: socket.socket
    host: str
    nonce: bytes
    opened: float
    heard: bytearray = field(default_factory=bytearray)
    watched: int = select.EPOLLIN
    answer: Buffers | None = None  # on its way out
    stale: int = -1  # ticket whose later asks are refused too


class Holder:
    """Listens, and serves every proven reader in turn. `poll` is the plane's."""

    def __init__(self, settings: PlaneSettings, poll: select.epoll) -> None:
        self._memory = settings.memory
        self._pages = page_bytes_view(settings.memory)
        self._generations = generations_array(settings.memory)
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._listener = listening(settings.host)
        self._poll = poll
        self._poll.register(self._listener, select.EPOLLIN)
        self._readers: dict[int, _Reader] = {}  # proven, by descriptor
        self._strangers: dict[int, _Reader] = {}  # not yet, oldest first
        self._serving: deque[_Reader] = deque()  # with an ask to answer
        self._named: set[str] = set()
        self.refused = 0
        host, port = self._listener.getsockname()[:2]
        memory = self._memory
        self.metadata = Metadata(host, port, self._token, memory.page_bytes, memory.page_count)

    @property
    def busy(self) -> bool:
        return bool(self._serving)

    @property
    def connections(self) -> int:
        return len(self._readers) + len(self._strangers)

    def hear(self, descriptor: int, events: int) -> None:
        """What epoll says of one of our descriptors; of others nothing."""
        if descriptor == self._listener.fileno():
            self._accept()
        elif events & ~select.EPOLLOUT:
            reader = self._readers.get(descriptor) or self._strangers.get(descriptor)
            if reader is not None:
                self._hear(reader)

    def progress(self, most_bytes: int, until: float) -> None:
        """Send until so many bytes are out or the time has come."""
        if self._strangers:
            self._end_silent(monotonic())
        full: list[_Reader] = []
        while self._serving and most_bytes > 0:
            reader = self._serving.popleft()
            sent = self._serve(reader, min(TURN_BYTES, most_bytes))
            most_bytes -= max(0, sent)
            if sent < 0:
                full.append(reader)
            elif self._has_work(reader):
                self._serving.append(reader)
            else:
                self._watch(reader, select.EPOLLIN)
            if perf_counter() > until:
                break
        self._serving.extend(full)

    def close(self) -> None:
        for reader in [*self._readers.values(), *self._strangers.values()]:
            reader.socket.close()
        self._readers.clear()
        self._strangers.clear()
        self._serving.clear()
        self._listener.close()

    # Connections

    def _accept(self) -> None:
        for _ in range(STRANGERS):
            try:
                link, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptor left, or gone before it was accepted
                self._count("the next peer", str(error))
                return
            reader = _Reader(link, address[0], secrets.token_bytes(NONCE_BYTES), monotonic())
            if len(self._strangers) >= STRANGERS:
                oldest = next(iter(self._strangers.values()))
                self._refuse(oldest, "too many connections that prove nothing")
            self._strangers[link.fileno()] = reader
            try:
                prepare(link)
                self._poll.register(link, select.EPOLLIN)
                link.send(TAG + reader.nonce)  # a new connection's buffer is empty: all of it
            except OSError:
                self._drop(reader)

    def _end_silent(self, now: float) -> None:
        for reader in list(self._strangers.values()):
            if now - reader.opened < STRANGER_SECONDS:
                return
            self._refuse(reader, "no proof in time")

    def _refuse(self, reader: _Reader, reason: str) -> None:
        self._count(reader.host, reason)
        self._drop(reader)

    def _count(self, host: str, reason: str) -> None:
        self.refused += 1
        if host not in self._named and len(self._named) < NAMED_HOSTS:
            self._named.add(host)
            log.warning("a connection from %s was refused: %s", host, reason)

    def _drop(self, reader: _Reader) -> None:
        descriptor = reader.socket.fileno()
        self._readers.pop(descriptor, None)
        self._strangers.pop(descriptor, None)
        if reader in self._serving:
            self._serving.remove(reader)
        reader.heard.clear()
        reader.answer = None
        reader.socket.close()  # epoll forgets it by itself

    def _watch(self, reader: _Reader, events: int) -> None:
        if reader.watched != events and reader.socket.fileno() >= 0:
            self._poll.modify(reader.socket, events)
            reader.watched = events

    # Hearing

    def _hear(self, reader: _Reader) -> None:
        left = HEAR_BYTES
        try:
            while left > 0 and not self._has_whole(reader):
                received = reader.socket.recv(min(left, 64 << 10))
                if not received:
                    self._drop(reader)
                    return
                reader.heard += received
                left -= len(received)
        except BlockingIOError:
            pass
        except ValueError as error:
            self._refuse(reader, str(error))
            return
        except OSError:
            self._drop(reader)
            return
        if self._has_work(reader) and reader not in self._serving:
            self._serving.append(reader)
            # Room to send is what wakes the loop then; asks behind this one would not let it sleep.
            self._watch(reader, select.EPOLLOUT)

    def _has_whole(self, reader: _Reader) -> bool:
        """A whole ask was heard. Meets strangers on the way. Raises ValueError."""
        if reader.socket.fileno() in self._strangers:
            if not self._meet(reader):
                return False
        heard = reader.heard
        return len(heard) >= ASK.size and len(heard) >= ask_bytes(heard)

    def _has_work(self, reader: _Reader) -> bool:
        if reader.socket.fileno() not in self._readers:
            return False
        try:
            return reader.answer is not None or self._has_whole(reader)
        except ValueError as error:
            self._refuse(reader, str(error))
            return False

    def _meet(self, reader: _Reader) -> bool:
        """The stranger has proven itself. Raises ValueError where it proved the contrary."""
        heard = bytes(reader.heard[:INTRODUCTION_BYTES])
        if not TAG.startswith(heard[: len(TAG)]):
            raise ValueError("it speaks another protocol")
        if len(heard) < INTRODUCTION_BYTES:
            return False
        nonce, said = heard[len(TAG) : GREETING_BYTES], heard[GREETING_BYTES:]
        if not proven(said, self._token, b"reader", reader.nonce, nonce):
            raise ValueError("its proof is of another token")
        if len(self._readers) >= READERS:
            raise ValueError(f"{READERS} readers are connected")
        del reader.heard[:INTRODUCTION_BYTES]
        descriptor = reader.socket.fileno()
        del self._strangers[descriptor]
        self._readers[descriptor] = reader
        ours = proof(self._token, b"holder", reader.nonce, nonce)
        reader.answer = Buffers([memoryview(ours)])
        return True

    # Answering

    def _serve(self, reader: _Reader, most_bytes: int) -> int:
        """Bytes sent, or -1 where the reader takes nothing just now."""
        if reader.answer is None:
            length = ask_bytes(reader.heard)
            ask = parse_ask(bytes(reader.heard[:length]))
            del reader.heard[:length]
            reader.answer = Buffers(self._answer(reader, ask))
        answer = reader.answer
        try:
            sent = reader.socket.sendmsg(answer.window(most_bytes))
        except BlockingIOError:
            return -1
        except OSError:
            self._drop(reader)
            return 0
        answer.advance(sent)
        if not answer.left:
            reader.answer = None
        return sent

    def _answer(self, reader: _Reader, ask: Ask) -> list[memoryview]:
        try:
            if ask.ticket == reader.stale:
                return _refusal(ask, STALE)
            pages = page_indices(ask.pages, self._memory.page_count, "remote")
            if ask.kind is Asked.GENERATIONS:
                values = self._generations[pages].astype("<u8").tobytes()
                header = ANSWER.pack(Answered.GENERATIONS, ask.ticket, len(values))
                return [memoryview(header + values)]
            if self._is_stale(ask):
                reader.stale = ask.ticket
                return _refusal(ask, STALE)
            return self._body(ask.ticket, pages)
        except PlaneError as error:
            self.refused += 1
            return _refusal(ask, str(error))

    def _is_stale(self, ask: Ask) -> bool:
        if not len(ask.guarded):
            return False
        guarded = page_indices(ask.guarded, self._memory.page_count, "guarded")
        return bool((self._generations[guarded] != ask.expected).any())

    def _body(self, ticket: int, pages: Indices) -> list[memoryview]:
        size = self._memory.page_bytes
        length = len(pages) * size
        if length > max(LARGEST_BODY, size):
            raise PlaneError(f"{length} bytes in one ask")
        header = memoryview(ANSWER.pack(Answered.BODY, ticket, length))
        return [header, *page_parts(self._pages, size, pages.tolist())]


def _refusal(ask: Ask, reason: str) -> list[memoryview]:
    text = reason.encode()[:LARGEST_REASON]
    return [memoryview(ANSWER.pack(Answered.REFUSED, ask.ticket, len(text)) + text)]
