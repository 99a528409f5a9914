"""Strangers, forgers and slow readers on the tcp plane: what its holder hears and says."""

import os
import select
import socket
from collections.abc import Iterator

import numpy
import pytest

from penstock.kvtransfer import tcp_holder
from penstock.kvtransfer.plane import STALE
from penstock.kvtransfer.tcp_wire import (
    ANSWER,
    ASK,
    GREETING_BYTES,
    LARGEST_ASK,
    PROOF_BYTES,
    TAG,
    Answered,
    Asked,
    ask_frame,
    proof,
)
from support.plane_world import descriptors, resident_bytes, until
from support.tcp_ends import NONCE, PAGE_BYTES, PAGE_COUNT, Holding, ask


@pytest.fixture
def holding() -> Iterator[Holding]:
    holding = Holding()
    yield holding
    holding.close()


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
    files, memory = descriptors(), resident_bytes()
    for _ in range(1000):
        visit()
    until(lambda: holding.plane.connections == 0, holding.pump, "their end")
    assert descriptors() == files
    assert resident_bytes() < memory + (4 << 20)
