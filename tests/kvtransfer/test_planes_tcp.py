"""Strangers, forgers and slow ones on the tcp plane, on both sides of the wire."""

import logging
import os
import select
import socket
from collections.abc import Callable, Iterator

import msgspec
import numpy
import pytest

from penstock.kvtransfer import tcp_holder
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.plane import STALE, PlaneError, PlaneSettings
from penstock.kvtransfer.targets import MOST_PAGES
from penstock.kvtransfer.tcp_plane import TcpPlane
from penstock.kvtransfer.tcp_wire import (
    ANSWER,
    ASK,
    GREETING_BYTES,
    LARGEST_ASK,
    PROOF_BYTES,
    TAG,
    Answered,
    Asked,
    Metadata,
    ask_frame,
    proof,
)
from support.plane_world import until

PAGE_BYTES = 8 << 10
PAGE_COUNT = 4096  # 32 MB: more than any socket holds
NONCE = b"n" * 16
NOTHING = numpy.zeros(0, dtype=numpy.int32)
NO_COUNTERS = numpy.zeros(0, dtype=numpy.uint64)


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


@pytest.fixture
def holding() -> Iterator[Holding]:
    holding = Holding()
    yield holding
    holding.close()


def ask(*pages: int, ticket: int = 1, kind: Asked = Asked.PAGES) -> bytes:
    return ask_frame(kind, ticket, numpy.array(pages, numpy.int32), NOTHING, NO_COUNTERS)


def test_a_proven_reader_gets_pages_then_generations(holding: Holding) -> None:
    link = holding.reader()
    holding.memory.generations[9] = 5
    link.send(ask(3, 4, 9) + ask(3, 9, ticket=2, kind=Asked.GENERATIONS))
    assert holding.answer(link) == (Answered.BODY, 1, holding.pages(3, 4, 9))
    values = numpy.array([0, 5], "<u8").tobytes()
    assert holding.answer(link) == (Answered.GENERATIONS, 2, values)
    assert holding.plane.refused == 0 and not holding.plane.busy


def test_a_forged_token_is_refused(holding: Holding, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        link = holding.reader(token=b"\0" * 32)
        assert holding.closes(link)
    assert holding.plane.refused == 3 and holding.plane.connections == 0
    assert len([record for record in caplog.records if "another token" in record.message]) == 1


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0", TAG[:-1] + b"2", TAG + b"\xff" * 48, os.urandom(5000)],
    ids=["http", "zero", "version", "proof", "noise"],
)
def test_who_speaks_something_else_is_closed(holding: Holding, said: bytes) -> None:
    link = holding.link()
    assert len(holding.hear(link, GREETING_BYTES)) == GREETING_BYTES
    link.send(said)
    assert holding.closes(link)
    assert holding.plane.refused == 1 and holding.plane.connections == 0


def test_a_proof_that_was_overheard_is_worth_nothing(holding: Holding) -> None:
    link = holding.link()
    nonce = holding.hear(link, GREETING_BYTES)[len(TAG) :]
    introduction = TAG + NONCE + proof(holding.words.token, b"reader", nonce, NONCE)
    link.send(introduction)
    assert len(holding.hear(link, PROOF_BYTES)) == PROOF_BYTES
    again = holding.link()
    holding.hear(again, GREETING_BYTES)
    again.send(introduction)
    assert holding.closes(again)


def test_who_never_proves_itself_is_closed_in_time(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, half = holding.link(), holding.link()
    half.send(TAG + b"1234")
    until(lambda: holding.plane.connections == 2, holding.pump, "both accepted")
    monkeypatch.setattr(tcp_holder, "STRANGER_SECONDS", 0.01)
    for link in (silent, half):
        holding.hear(link, GREETING_BYTES)
        assert holding.closes(link)
    assert holding.plane.connections == 0 and holding.plane.refused == 2


def test_strangers_and_readers_are_bounded(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_holder, "STRANGERS", 4)
    monkeypatch.setattr(tcp_holder, "READERS", 2)
    for _ in range(20):
        holding.link()
        holding.pump()
        assert holding.plane.connections <= 4
    until(lambda: holding.plane.refused == 16, holding.pump, "the refusal of all but four")
    first, second = holding.reader(), holding.reader()
    assert holding.closes(holding.reader())
    for link in (first, second):
        link.send(ask(7))
        assert holding.answer(link) == (Answered.BODY, 1, holding.pages(7))


def test_asks_that_cannot_be_served_are_refused_by_answer(holding: Holding) -> None:
    link = holding.reader()
    for frame in [
        ask(PAGE_COUNT),
        ask(0, -1),
        ask(),
        ask(PAGE_COUNT, kind=Asked.GENERATIONS),
        ask(*range(PAGE_COUNT), *range(PAGE_COUNT), *range(PAGE_COUNT)),  # 96 MB
        ask_frame(
            Asked.PAGES,
            1,
            numpy.zeros(1, numpy.int32),
            numpy.array([PAGE_COUNT], numpy.int32),
            numpy.zeros(1, numpy.uint64),
        ),
    ]:
        link.send(frame)
        kind, ticket, reason = holding.answer(link)
        assert (kind, ticket) == (Answered.REFUSED, 1) and reason
    link.send(ask(5))
    assert holding.answer(link)[2] == holding.pages(5)
    assert holding.plane.refused == 6


@pytest.mark.parametrize(
    "frame",
    [
        ASK.pack(3, 1, 0, 1) + b"\0" * 4,
        ASK.pack(0, 0, 0, 0),
        ASK.pack(Asked.PAGES, 2**32 - 1, 0, 1),
        ASK.pack(Asked.PAGES, 1, LARGEST_ASK // 12 + 1, 1),
    ],
    ids=["kind", "zeros", "pages", "guarded"],
)
def test_a_frame_that_is_no_ask_ends_the_connection(holding: Holding, frame: bytes) -> None:
    other = holding.reader()
    link = holding.reader()
    link.send(ask(1) + frame)
    holding.hear(link, ANSWER.size + PAGE_BYTES)  # what stood before it may still come
    assert holding.closes(link)
    other.send(ask(2))
    assert holding.answer(other)[2] == holding.pages(2)
    assert holding.plane.refused == 1 and holding.plane.connections == 1


@pytest.mark.parametrize("said", [b"", ask(1)[:7], ask(1, 2)[:-3]], ids=["none", "head", "tail"])
def test_half_a_frame_holds_nobody_up_and_goes_with_its_connection(
    holding: Holding, said: bytes
) -> None:
    link, other = holding.reader(), holding.reader()
    link.send(said)
    other.send(ask(2))
    assert holding.answer(other)[2] == holding.pages(2)
    link.shutdown(socket.SHUT_WR)
    assert holding.closes(link)
    assert holding.plane.connections == 1 and holding.plane.refused == 0


def test_a_slow_reader_holds_nobody_up_and_lets_the_loop_sleep(holding: Holding) -> None:
    slow, other = holding.reader(), holding.reader()
    every = list(range(PAGE_COUNT))
    for ticket in range(3):
        slow.send(ask(*every, ticket=ticket))
    until(lambda: holding.plane.busy, holding.pump, "the first ask")
    until(lambda: not select.select([holding.plane.wake], [], [], 0)[0], holding.pump, "no room")
    for _ in range(3):
        other.send(ask(2))
        until(
            lambda: bool(select.select([other], [], [], 0)[0]),
            holding.pump,
            "an answer to the other",
        )
        assert holding.answer(other)[2] == holding.pages(2)
    for ticket in range(3):
        assert holding.answer(slow) == (Answered.BODY, ticket, bytes(holding.memory.pages))
    until(lambda: not holding.plane.busy, holding.pump, "the end")
    assert not select.select([holding.plane.wake], [], [], 0)[0]


def test_after_a_stale_page_nothing_of_that_ticket_is_sent(holding: Holding) -> None:
    link = holding.reader()
    holding.memory.generations[1] = 1
    guarded, zeros = numpy.array([0, 1], numpy.int32), numpy.zeros(2, numpy.uint64)
    link.send(ask_frame(Asked.PAGES, 1, guarded[:1], guarded, zeros) + ask(2) + ask(3, ticket=2))
    for _ in range(2):
        assert holding.answer(link) == (Answered.REFUSED, 1, STALE.encode())
    assert holding.answer(link) == (Answered.BODY, 2, holding.pages(3))


def test_a_thousand_connections_leave_nothing(holding: Holding) -> None:
    def visit() -> None:
        link = holding.reader()
        link.send(ask(1, 2))
        assert holding.answer(link)[2] == holding.pages(1, 2)
        link.close()

    for _ in range(50):
        visit()
    until(lambda: holding.plane.connections == 0, holding.pump, "their end")
    holding.links.clear()
    files, memory = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(1000):
        visit()
    until(lambda: holding.plane.connections == 0, holding.pump, "their end")
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() < memory + (4 << 20)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# The reader


@pytest.fixture
def reader() -> Iterator[TcpPlane]:
    memory = HostMemory(PAGE_BYTES, 64)
    plane = TcpPlane(PlaneSettings(memory.memory, "reader"))
    yield plane
    plane.close()
    memory.close()


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
            Metadata("127.0.0.1", port, b"t" * 32, PAGE_BYTES, 64)
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
    return TAG + nonce + proof(b"t" * 32, b"holder", nonce, heard[len(TAG) : GREETING_BYTES])


def answering(answer: bytes) -> Callable[[bytes, bytes], bytes]:
    def talk(heard: bytes, nonce: bytes) -> bytes:
        asked = len(heard) > GREETING_BYTES + PROOF_BYTES
        return honest(heard, nonce) + (answer if asked else b"")

    return talk


BODY = ANSWER.pack(Answered.BODY, 1, PAGE_BYTES)


@pytest.mark.parametrize(
    ("talk", "sentence"),
    [
        (lambda heard, nonce: b"SSH-2.0-OpenSSH_9.7 and so on", "another protocol"),
        (
            lambda heard, nonce: TAG + nonce + (b"x" * PROOF_BYTES if heard else b""),
            "another token",
        ),
        (answering(b"\xff" * ANSWER.size), "nothing"),
        (answering(ANSWER.pack(9, 1, 8)), "answer 9"),
        (answering(ANSWER.pack(Answered.BODY, 2, PAGE_BYTES)), "nothing"),
        (answering(ANSWER.pack(Answered.BODY, 1, PAGE_BYTES + 1)), "asked for"),
        (answering(ANSWER.pack(Answered.BODY, 1, 2**63)), "asked for"),
        (answering(ANSWER.pack(Answered.GENERATIONS, 1, 8)), "asked for"),
        (answering(ANSWER.pack(Answered.REFUSED, 1, 2**40)), "asked for"),
        (answering(ANSWER.pack(Answered.REFUSED, 1, 0)), "refused"),
        (answering(ANSWER.pack(Answered.REFUSED, 1, 9) + b"not these"), "not these"),
        (answering(BODY + b"\1" * PAGE_BYTES + BODY), "asked for"),  # again, for the generations
    ],
)
def test_a_reader_refuses_what_it_did_not_ask_for(
    reader: TcpPlane, talk: Callable[[bytes, bytes], bytes], sentence: str
) -> None:
    forger = Forger(talk)
    reader.add_peer("tcp://forger:1", 1, forger.metadata)
    ticket = reader.read("tcp://forger:1", [3], [3])
    ended: list[str] = []

    def turn() -> None:
        forger.step()
        ended.extend(completion.failed for completion in reader.progress())

    until(lambda: bool(ended), turn, "the end of the read")
    assert sentence in ended[0] and reader.quiet(ticket) and not reader.busy
    forger.close()


def test_a_connection_that_broke_between_reads_is_replaced(
    reader: TcpPlane, holding: Holding
) -> None:
    reader.add_peer("tcp://peer:1", 1, holding.plane.metadata())
    for turn in range(3):
        reader.read("tcp://peer:1", [turn], [turn])
        ended: list[str] = []

        def both() -> None:
            holding.pump()
            ended.extend(completion.failed for completion in reader.progress())  # noqa: B023

        until(lambda: bool(ended), both, "the read")  # noqa: B023
        assert ended == [""]
        holding.plane._holder._drop(next(iter(holding.plane._holder._readers.values())))


def test_what_cannot_be_asked_is_refused(reader: TcpPlane) -> None:
    def words(**change: object) -> bytes:
        good = Metadata("127.0.0.1", 9, b"t" * 32, PAGE_BYTES, MOST_PAGES + 1)
        return msgspec.msgpack.encode(msgspec.structs.replace(good, **change))

    for bad in [
        words(host="localhost"),
        words(host=""),
        words(port=70000),
        words(port=-1),
        words(token=b"short"),
    ]:
        with pytest.raises(PlaneError):
            reader.add_peer("tcp://peer:1", 1, bad)
    reader.add_peer("tcp://peer:1", 1, words())
    pages = list(range(MOST_PAGES + 1))
    with pytest.raises(PlaneError, match="at most"):
        reader.read("tcp://peer:1", pages, pages)


def test_keys_do_not_make_it_encrypted_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    memory = HostMemory(PAGE_BYTES, 1)
    settings = PlaneSettings(memory.memory, "keys", curve=(b"public", b"secret"))
    with caplog.at_level(logging.WARNING):
        plane = TcpPlane(settings)
    assert "not encrypted" in plane.path and "not encrypted" in caplog.text
    plane.close()
    memory.close()
