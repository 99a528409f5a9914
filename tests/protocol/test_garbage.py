"""Peers that speak garbage or another revision: dropped, counted, said once, and hung up on."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from penstock.protocol import codec, sockets
from penstock.protocol.addresses import parse_endpoint
from penstock.protocol.clusterkey import ClusterKey, write_key
from penstock.protocol.codec import MAX_BODY_BYTES, MAX_HEADER_BYTES
from penstock.protocol.messages import REVISION, Cancel, Drain, Identify, Peer, Refused
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received
from penstock.protocol.sockets import Mailbox, SystemClock

PATIENCE = 20.0
HEADER = codec.encode_header(Peer("x", 1, "tcp://127.0.0.1:1"))
BODY = codec.encode(Identify())
NEWER = HEADER[:4] + (REVISION + 1).to_bytes(2, "big") + HEADER[6:]
GARBAGE = {
    "an empty frame": [b""],
    "no header of ours": [b"x", b"y"],
    "no body": [HEADER],
    "no message": [HEADER, b"\xc1"],
    "a truncated message": [HEADER, codec.encode(Refused("no"))[:-1]],
    "an unknown tag": [HEADER, b"\x92\xa7explode\x01"],
    "another revision": [NEWER, BODY],
    "too many frames": [HEADER, BODY, BODY],
    "a huge header": [HEADER + bytes(MAX_HEADER_BYTES), BODY],
    "a list that is not there": [HEADER, b"\x93\xa5renew\xdd\x0f\xff\xff\xff\x01"],
}


@pytest.fixture(params=["clear", "curve"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> ClusterKey | None:
    return write_key(tmp_path / "key") if request.param == "curve" else None


@pytest.fixture
def inbox(key: ClusterKey | None) -> Iterator[Mailbox]:
    mailbox = Mailbox("inbox", key=key)
    yield mailbox
    mailbox.close()


def heard_something(inbox: Mailbox) -> list[Arrival]:
    give_up = SystemClock().now() + PATIENCE
    while SystemClock().now() < give_up:
        inbox.wait(0.1)
        if seen := inbox.receive():
            return seen
    raise AssertionError("nothing was heard")


def deliver(inbox: Mailbox, good: Mailbox, message: Cancel) -> list[Arrival]:
    """`good` says it and `inbox` hears it; what `good` heard meanwhile."""
    good.send(inbox.me.endpoint, message)
    heard: list[Arrival] = []
    give_up = SystemClock().now() + PATIENCE
    while SystemClock().now() < give_up:
        inbox.wait(0.02)
        arrived = inbox.receive()
        good.wait(0.0)
        heard += good.receive()
        if Received(good.me, message) in arrived:
            return heard
    raise AssertionError(f"{message} was not heard")


@contextmanager
def raw_dealer(inbox: Mailbox, key: ClusterKey | None, once: bool = True) -> Iterator[zmq.Socket]:
    """A peer that can say anything. `once`: it does not connect again."""
    with zmq.Context() as context:
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        if once:
            dealer.reconnect_ivl = -1
        if key is not None:
            dealer.curve_serverkey = key.public.encode()
            dealer.curve_publickey = key.public.encode()
            dealer.curve_secretkey = key.secret.encode()
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(inbox.me.endpoint)
        yield dealer
        dealer.disable_monitor()
        monitor.close(0)
        dealer.close(0)


def hung_up(inbox: Mailbox, dealer: zmq.Socket) -> bool:
    """Its connection was closed; meanwhile the inbox is served."""
    clock = SystemClock()
    give_up = clock.now() + PATIENCE
    monitor = dealer.get_monitor_socket()
    while clock.now() < give_up:
        inbox.wait(0.05)
        inbox.receive()
        if monitor.poll(0):
            return True
    return False


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_closes_its_connection_and_no_other(
    inbox: Mailbox, key: ClusterKey | None, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = Mailbox("good", key=key)
    good.connect(inbox.me.endpoint)
    deliver(inbox, good, Cancel(1, 1))
    with raw_dealer(inbox, key) as dealer:
        dealer.send_multipart(GARBAGE[kind])
        assert hung_up(inbox, dealer)
    assert (inbox.counters.garbage, inbox.counters.closed) == (1, 1)
    assert inbox.counters.other_revisions == (kind == "another revision")
    said = [record.message for record in caplog.records if "closing" in record.message]
    assert len(said) == 1
    if kind == "another revision":
        assert f"revision {REVISION + 1}, this process speaks {REVISION}: run one" in said[0]
    heard = deliver(inbox, good, Cancel(1, 2))
    assert Disconnected(inbox.me.endpoint) not in heard
    good.close()


def test_what_follows_garbage_on_its_connection_is_dropped(inbox: Mailbox, key) -> None:
    with raw_dealer(inbox, key) as dealer:
        for frames in ([HEADER, BODY], [HEADER, b"\xc1"], [HEADER, BODY], [HEADER, b"\xc1"]):
            dealer.send_multipart(frames)
        seen = heard_something(inbox)
        give_up = SystemClock().now() + PATIENCE
        while inbox.counters.garbage < 3 and SystemClock().now() < give_up:
            inbox.wait(0.05)
            seen += inbox.receive()
    assert len(seen) == 1 and inbox.counters.received == 1
    assert inbox.counters.closed == 1


def test_a_peer_that_comes_back_decent_is_served_and_said_once(
    inbox: Mailbox, key: ClusterKey | None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with raw_dealer(inbox, key) as dealer:
            dealer.send_multipart([b"not ours", b"at all"])
            assert hung_up(inbox, dealer)
    assert inbox.counters.closed == 3
    assert len([one for one in caplog.records if "closing" in one.message]) == 1
    with raw_dealer(inbox, key) as dealer:
        dealer.send_multipart([HEADER, BODY])
        heard_something(inbox)


def test_a_peer_with_a_name_of_its_own_is_hung_up_on_each_time(inbox: Mailbox, key) -> None:
    for times in (1, 2):
        with zmq.Context() as context:
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.routing_id = b"always me"
            if key is not None:
                dealer.curve_serverkey = key.public.encode()
                dealer.curve_publickey = key.public.encode()
                dealer.curve_secretkey = key.secret.encode()
            dealer.connect(inbox.me.endpoint)
            dealer.send_multipart([b"x"])
            give_up = SystemClock().now() + PATIENCE
            while inbox.counters.closed < times and SystemClock().now() < give_up:
                inbox.wait(0.05)
                inbox.receive()
            dealer.close(0)
        assert inbox.counters.closed == times


def test_a_mailbox_of_another_revision_is_told_and_does_not_storm(
    inbox: Mailbox, key, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(codec, "REVISION", REVISION + 1)
    newer = Mailbox("newer", key=key)
    monkeypatch.undo()
    newer.connect(inbox.me.endpoint)
    give_up = SystemClock().now() + PATIENCE
    ended = 0
    while ended < sockets.HANGUPS_SAID and SystemClock().now() < give_up:
        newer.wait(0.02)
        for arrival in newer.receive():
            if isinstance(arrival, Connected):
                newer.send(inbox.me.endpoint, Drain())
            ended += isinstance(arrival, Disconnected)
        inbox.wait(0.02)
        assert inbox.receive() == []
    assert ended == sockets.HANGUPS_SAID
    assert newer._destinations[inbox.me.endpoint].tries >= ended, "it waits longer each time"
    newer.close()
    said = [record.message for record in caplog.records]
    assert len([one for one in said if "closing the connection" in one]) == 1
    assert len([one for one in said if "another version" in one]) == 1
    assert inbox.counters.other_revisions == ended


def test_a_frame_larger_than_allowed_is_not_taken(inbox: Mailbox, key) -> None:
    """ZeroMQ closes such a connection by itself, before the frame is in memory."""
    with raw_dealer(inbox, key) as dealer:
        dealer.send_multipart([HEADER, bytes(MAX_BODY_BYTES + 1)])
        assert hung_up(inbox, dealer)
    assert inbox.counters.received == 0
    with raw_dealer(inbox, key) as dealer:
        dealer.send_multipart([HEADER, BODY])
        heard_something(inbox)


@pytest.mark.parametrize("seed", range(3))
def test_any_frames_at_all(inbox: Mailbox, key: ClusterKey | None, seed: int) -> None:
    """None to five frames of anything: nothing escapes, and who is decent is heard."""
    chance = random.Random(seed)
    parts = [HEADER, BODY, NEWER, b"", b"PSTK", HEADER[:9], b"\xc1", bytes(2000)]
    with raw_dealer(inbox, key, once=False) as dealer:
        for _ in range(300):
            frames = [
                chance.choice(parts) if chance.random() < 0.7 else chance.randbytes(40)
                for _ in range(chance.randint(1, 5))
            ]
            dealer.send_multipart(frames, zmq.NOBLOCK)
            inbox.wait(0.001)
            assert all(isinstance(one, Received) for one in inbox.receive())
    good = Mailbox("good", key=key)
    deliver(inbox, good, Cancel(1, 1))
    assert inbox.counters.garbage > 0
    good.close()


def test_a_stranger_who_does_not_speak_zeromq_harms_nobody(
    inbox: Mailbox, key, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(5)
    address = parse_endpoint(inbox.me.endpoint)
    for _ in range(20):
        with socket.create_connection(address) as stranger:
            stranger.sendall(chance.randbytes(chance.randint(0, 3000)))
        inbox.wait(0.001)
        assert inbox.receive() == []
    good = Mailbox("good", key=key)
    deliver(inbox, good, Cancel(1, 1))
    good.close()


def test_a_stranger_of_an_old_zeromq_ends_nobody(inbox: Mailbox, key: ClusterKey | None) -> None:
    """Its frames come without an origin, so its connection stays; they are dropped and counted."""
    with socket.create_connection(parse_endpoint(inbox.me.endpoint)) as stranger:
        stranger.sendall(b"\x01\x00" + b"\x02\x00x")  # ZMTP 1.0: no name, one frame
        good = Mailbox("good", key=key)
        deliver(inbox, good, Cancel(1, 1))
        if key is None:
            give_up = SystemClock().now() + PATIENCE
            while not inbox.counters.garbage and SystemClock().now() < give_up:
                inbox.wait(0.05)
                inbox.receive()
        good.close()
    assert (inbox.counters.garbage, inbox.counters.closed) == (int(key is None), 0)
