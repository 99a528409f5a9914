"""Whom a mailbox with a cluster key meets, and whom it turns away."""

import threading
from pathlib import Path

import pytest
import zmq

from penstock.protocol import codec, sockets
from penstock.protocol.clusterkey import ClusterKey, write_key
from penstock.protocol.messages import Drain, Identify, Peer
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received
from penstock.protocol.sockets import Mailbox, MailboxError
from support.mailboxes import PATIENCE, Open, is_kind, until, words


def test_the_same_key_meets_and_another_is_refused(
    open_mailbox: Open, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    key, other = write_key(tmp_path / "key"), write_key(tmp_path / "other")
    a, b = open_mailbox("a", key=key), open_mailbox("b", key=key)
    serve = threading.Event()

    # The stranger has half of the key, the unkeyed one nothing.
    stranger = open_mailbox("s", key=ClusterKey(key.public, other.secret))
    unkeyed = open_mailbox("u")
    b.send(a.me.endpoint, Drain())
    stranger.send(a.me.endpoint, Identify())
    unkeyed.send(a.me.endpoint, Identify())

    arrivals: list[Arrival] = []

    def attend() -> None:
        while not serve.is_set():
            a.wait(0.05)
            arrivals.extend(a.receive())

    thread = threading.Thread(target=attend)
    thread.start()
    try:
        until(b, is_kind(Connected))
        assert until(stranger, is_kind(Disconnected)) == [Disconnected(a.me.endpoint)]
        assert until(unkeyed, is_kind(Disconnected)) == [Disconnected(a.me.endpoint)]
    finally:
        serve.set()
        thread.join()
    if not arrivals:
        arrivals = until(a, is_kind(Received))
    assert words(arrivals) == [Drain()]


def test_the_gate_turns_away_a_foreign_key_pair(open_mailbox: Open, tmp_path: Path) -> None:
    key = write_key(tmp_path / "key")
    a = open_mailbox("a", key=key)
    public, secret = zmq.curve_keypair()
    with zmq.Context() as context:
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.curve_serverkey = key.public.encode()
        dealer.curve_publickey, dealer.curve_secretkey = public, secret
        dealer.connect(a.me.endpoint)
        header = codec.encode_header(Peer("s", 1, "tcp://127.0.0.1:1"))
        dealer.send_multipart([header, codec.encode(Identify())])
        clock = sockets.SystemClock()
        give_up = clock.now() + PATIENCE
        while not a.strangers and clock.now() < give_up:
            a.wait(1.0)
            assert a.receive() == []
        dealer.close(0)
    assert a.strangers >= 1


def test_beyond_loopback_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(MailboxError, match="penstock keygen"):
        Mailbox("a", host="0.0.0.0")
    key = write_key(tmp_path / "key")
    mailbox = Mailbox("a", host="0.0.0.0", advertise="127.0.0.1", key=key)
    assert mailbox.me.endpoint.startswith("tcp://127.0.0.1:")
    mailbox.close()
