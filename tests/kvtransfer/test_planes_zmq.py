"""Forged, cut and foreign frames on the ZeroMQ plane, on both sides of the wire."""

from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from penstock.kvtransfer import zmq_holder
from penstock.kvtransfer.plane import PlaneError
from penstock.kvtransfer.zmq_holder import (
    ANSWER,
    ENCODE,
    AskGenerations,
    AskPages,
    Body,
    Generations,
    Metadata,
    Refused,
)
from support.plane_world import PAGE_BYTES, PAGE_COUNT, World, until

ZERO = (0).to_bytes(4, "little")


@pytest.fixture
def world() -> Iterator[World]:
    world = World("zmq")
    yield world
    world.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def ask(context: zmq.Context[zmq.Socket[bytes]], address: str, *frames: bytes) -> list[bytes]:
    """What a stranger hears who sends this; [] when nothing is heard for a while."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.send_multipart(frames)
        return socket.recv_multipart() if socket.poll(5000) else []


def test_a_holder_refuses_what_it_cannot_serve_and_serves_on(
    world: World, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    peer = world.peer()
    metadata = peer.metadata()
    words = msgspec.msgpack.decode(metadata, type=Metadata)
    outside = PAGE_COUNT.to_bytes(4, "little")
    negative = (-1).to_bytes(4, "little", signed=True)
    good = ENCODE(AskPages(words.token, 1, ZERO))
    forged: list[tuple[bytes, ...]] = [
        (b"",),
        (b"garbage",),
        (good[:-2],),
        (good, b"more"),
        (ENCODE(AskPages(b"\0" * 16, 1, ZERO)),),
        (ENCODE(AskPages(words.token, 1, ZERO[:3])),),
        (ENCODE(AskPages(words.token, 1, outside)),),
        (ENCODE(AskPages(words.token, 1, ZERO + negative)),),
        (ENCODE(AskPages(words.token, 1, b"")),),
        (ENCODE(AskPages(words.token, 1, ZERO * 20_000)),),  # 245 MB in one answer
        (ENCODE(AskGenerations(words.token, 1, outside)),),
    ]
    for frames in forged:
        header, body = ask(context, words.address, *frames)
        assert isinstance(ANSWER.decode(header), Refused) and body == b""
    assert peer.ask("metadata")["refused"] == len(forged)
    header, body = ask(context, words.address, good)
    assert ANSWER.decode(header) == Body(1) and body == peer.expected(0)
    world.plane.add_peer("tcp://peer:1", 1, metadata)
    assert world.read("tcp://peer:1", [1], [1]).failed == ""


@pytest.mark.parametrize(
    "answer",
    [
        lambda ticket: [b"garbage", b""],
        lambda ticket: [ENCODE(Body(ticket))],
        lambda ticket: [ENCODE(Body(ticket)), b"short"],
        lambda ticket: [ENCODE(Body(ticket)), b"x" * (PAGE_BYTES + 1)],
        lambda ticket: [ENCODE(Body(ticket + 1)), b"x" * PAGE_BYTES],
        lambda ticket: [ENCODE(Generations(ticket)), b"x" * 8],
        lambda ticket: [ENCODE(Body(ticket)), b"x" * PAGE_BYTES, b"more"],
        lambda ticket: [ENCODE(Refused(0, "go away")), b""],
        lambda ticket: [ENCODE(Refused(ticket, "not these pages")), b""],
    ],
)
def test_a_reader_refuses_an_answer_it_did_not_ask_for(
    world: World,
    context: zmq.Context[zmq.Socket[bytes]],
    answer: Callable[[int], list[bytes]],
    request: pytest.FixtureRequest,
) -> None:
    holder = context.socket(zmq.ROUTER)
    request.addfinalizer(holder.close)
    port = holder.bind_to_random_port("tcp://127.0.0.1")
    words = Metadata(f"tcp://127.0.0.1:{port}", b"t" * 16, b"", PAGE_BYTES, PAGE_COUNT)
    world.plane.add_peer("tcp://forger:1", 1, ENCODE(words))
    world.poison()
    ticket = world.plane.read("tcp://forger:1", [3], [3])
    until(lambda: bool(holder.poll(0)), world.pump, "the ask")
    connection = holder.recv_multipart()[0]
    holder.send_multipart([connection, *answer(ticket)])
    completion = world.settle(ticket)
    assert completion.failed != "" and completion.quiet
    assert world.poisoned([3])
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    assert world.read("tcp://peer:1", [3], [3]).failed == ""


def test_a_plane_with_keys_never_speaks_in_the_clear(world: World) -> None:
    secret = World("zmq-curve")
    try:
        with pytest.raises(PlaneError, match="CURVE"):
            world.plane.add_peer("tcp://secret:1", 1, secret.plane.metadata())
        with pytest.raises(PlaneError, match="CURVE"):
            secret.plane.add_peer("tcp://open:1", 1, world.plane.metadata())
        assert "CURVE" in secret.plane.path and "clear" in world.plane.path
    finally:
        secret.close()


def test_a_flood_of_asks_holds_no_call_for_longer_than_its_share(
    world: World, context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_holder, "MOST_HEARD", 3)
    heard: list[int] = []
    hear = zmq_holder.Holder._hear
    monkeypatch.setattr(
        zmq_holder.Holder, "_hear", lambda self, frames: (heard.append(1), hear(self, frames))[1]
    )
    words = msgspec.msgpack.decode(world.plane.metadata(), type=Metadata)
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(words.address)
        for ticket in range(1, 21):
            socket.send(ENCODE(AskPages(words.token, ticket, ZERO)))
        answers = 0
        for _ in range(5000):
            before = len(heard)
            world.plane.progress()
            assert len(heard) - before <= 3
            while socket.poll(1):
                socket.recv_multipart()
                answers += 1
            if answers == 20:
                break
    assert answers == 20, "what was left is heard by later calls"
