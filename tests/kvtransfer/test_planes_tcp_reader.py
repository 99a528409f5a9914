"""Forged answers and broken connections on the tcp plane: what its reader believes."""

import logging
from collections.abc import Callable, Iterator

import msgspec
import pytest

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.plane import PlaneError, PlaneSettings
from penstock.kvtransfer.targets import MOST_PAGES
from penstock.kvtransfer.tcp_plane import TcpPlane
from penstock.kvtransfer.tcp_wire import ANSWER, PROOF_BYTES, TAG, Answered, Metadata
from support.plane_world import until
from support.tcp_ends import PAGE_BYTES, Forger, Holding, answering


@pytest.fixture
def holding() -> Iterator[Holding]:
    holding = Holding()
    yield holding
    holding.close()


@pytest.fixture
def reader() -> Iterator[TcpPlane]:
    memory = HostMemory(PAGE_BYTES, 64)
    plane = TcpPlane(PlaneSettings(memory.memory, "reader"))
    yield plane
    plane.close()
    memory.close()


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
