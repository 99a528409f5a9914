"""Peers that are not there, die, hang or come back, and what a mailbox says of them."""

import os
import signal

import pytest

from penstock.protocol import link, sockets
from penstock.protocol.messages import Identify, LeaseEnded, Refused
from penstock.protocol.seams import Connected, Disconnected
from support.mailboxes import Open, Start, is_kind, is_message, until


def test_a_kept_endpoint_is_tried_until_somebody_answers(
    open_mailbox: Open, start_other: Start
) -> None:
    first = start_other()
    first.kill()
    a = open_mailbox("a")
    a.connect(first.endpoint)
    a.send(first.endpoint, Refused("kept"))
    for _ in range(3):  # tries that fail are no news
        a.wait(0.1)
        assert a.receive() == []
    second = start_other(first.port)
    until(a, is_kind(Connected))
    assert second.line() == "kept"


def test_an_endpoint_nobody_answers_is_said_once(open_mailbox: Open, start_other: Start) -> None:
    gone = start_other()
    gone.kill()
    a = open_mailbox("a")
    a.send(gone.endpoint, Identify())
    assert until(a, is_kind(Disconnected)) == [Disconnected(gone.endpoint)]
    assert a.counters.discarded == 1
    assert a.seconds_until_due() is None


def test_a_killed_peer_is_said_and_a_new_one_is_reached(
    open_mailbox: Open, start_other: Start
) -> None:
    first = start_other()
    a = open_mailbox("a")
    a.send(first.endpoint, Refused("one"))
    until(a, is_message(Refused("one")))
    first.kill()
    assert Disconnected(first.endpoint) in until(a, is_kind(Disconnected))
    second = start_other(first.port)
    a.send(first.endpoint, Refused("two"))
    until(a, is_message(Refused("two")))
    assert second.line() == "two"


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "lazy"])
def test_words_for_the_dead_never_reach_its_successor(
    open_mailbox: Open, start_other: Start, kept: bool
) -> None:
    first = start_other(mode="deaf")
    a = open_mailbox("a")
    if kept:
        a.connect(first.endpoint)
    a.send(first.endpoint, Refused("old"))
    until(a, is_kind(Connected))
    os.kill(first.process.pid, signal.SIGSTOP)
    for _ in range(500):
        a.send(first.endpoint, Refused("old" + "." * 4000))
    first.kill()
    second = start_other(first.port)
    a.send(first.endpoint, Refused("old, sent before the break was known"))
    until(a, is_kind(Disconnected))
    a.send(first.endpoint, Refused("new"))
    until(a, is_message(Refused("new")))
    assert second.line() == "new"


def test_a_silent_machine_is_noticed_by_heartbeats(
    open_mailbox: Open, start_other: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "HEARTBEAT_MILLISECONDS", 50)
    monkeypatch.setattr(link, "SILENCE_MILLISECONDS", 300)
    other = start_other()
    a = open_mailbox("a")
    a.connect(other.endpoint)
    until(a, is_kind(Connected))
    os.kill(other.process.pid, signal.SIGSTOP)
    assert Disconnected(other.endpoint) in until(a, is_kind(Disconnected))


def test_a_full_queue_is_a_disconnect_and_is_counted(
    open_mailbox: Open, start_other: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "HIGH_WATER_MARK", 20)
    other = start_other()
    a = open_mailbox("a")
    a.send(other.endpoint, Identify())
    until(a, is_kind(Connected))
    os.kill(other.process.pid, signal.SIGSTOP)
    for _ in range(10_000):
        a.send(other.endpoint, LeaseEnded(1, "." * 100_000))
        if a.counters.overflows:
            break
    assert a.receive()[-1] == Disconnected(other.endpoint)
    assert a.counters.overflows == 1
    os.kill(other.process.pid, signal.SIGCONT)
    a.send(other.endpoint, Refused("again"))
    until(a, is_message(Refused("again")))


def test_a_full_queue_of_an_absent_peer_too(
    open_mailbox: Open, start_other: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 3)
    gone = start_other()
    gone.kill()
    a = open_mailbox("a")
    a.connect(gone.endpoint)
    for _ in range(4):
        a.send(gone.endpoint, Identify())
    assert a.receive() == [Disconnected(gone.endpoint)]
    assert (a.counters.overflows, a.counters.discarded) == (1, 4)
