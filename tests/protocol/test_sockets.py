"""Mailboxes over real sockets and real processes: delivery, waiting, first and last words."""

import asyncio
import os
import threading
from collections.abc import Callable

import pytest
import uvloop

from penstock.protocol import reception
from penstock.protocol.addresses import parse_endpoint
from penstock.protocol.messages import Cancel, Drain, Identify
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received
from penstock.protocol.sockets import Mailbox, MailboxError
from penstock.protocol.watch import Watch
from support.mailboxes import PATIENCE, Open, Start, is_kind, is_message, until, words


def test_messages_arrive_in_order_with_their_sender(open_mailbox: Open) -> None:
    a, b = open_mailbox("a"), open_mailbox("b")
    for attempt in range(300):
        a.send(b.me.endpoint, Cancel(1, attempt))
    assert is_kind(Connected)(until(a, is_kind(Connected))[-1])
    seen = until(b, is_message(Cancel(1, 299)))
    assert seen == [Received(a.me, Cancel(1, attempt)) for attempt in range(300)]
    assert (a.counters.sent, b.counters.received) == (300, 300)


def test_each_start_has_its_own_incarnation(open_mailbox: Open) -> None:
    a, b = open_mailbox("same"), open_mailbox("same")
    assert a.me.incarnation != b.me.incarnation
    assert a.me.endpoint != b.me.endpoint


def test_a_flood_is_taken_in_parts_and_nothing_is_left(
    open_mailbox: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "MAX_DRAIN", 7)
    a, b = open_mailbox("a"), open_mailbox("b")
    for attempt in range(50):
        a.send(b.me.endpoint, Cancel(1, attempt))
    until(a, is_kind(Connected))
    assert len(words(until(b, is_message(Cancel(1, 49))))) == 50


def test_forget_drops_what_waits_and_says_nothing(open_mailbox: Open, start_other: Start) -> None:
    gone = start_other()
    gone.kill()
    a = open_mailbox("a")
    a.connect(gone.endpoint)
    a.send(gone.endpoint, Identify())
    a.forget(gone.endpoint)
    a.forget(gone.endpoint)
    a.forget("tcp://127.0.0.1:1")
    assert a.receive() == []
    assert a.seconds_until_due() is None
    assert a.counters.discarded == 1


def test_an_impossible_endpoint_is_a_disconnect_not_a_crash(open_mailbox: Open) -> None:
    a = open_mailbox("a")
    for endpoint in ("nonsense", "tcp://127.0.0.1:99999", "ipc:///tmp/x", "tcp://192.0.2.1:5"):
        a.send(endpoint, Identify())
        assert a.receive() == [Disconnected(endpoint)]
        with pytest.raises(MailboxError):
            a.connect(endpoint)


def test_last_words_go_out_on_close(open_mailbox: Open) -> None:
    a, b = Mailbox("a"), open_mailbox("b")
    a.send(b.me.endpoint, Identify())
    until(a, is_kind(Connected))
    a.send(b.me.endpoint, Drain())
    a.close(flush_seconds=PATIENCE)
    assert until(b, is_message(Drain()))[-1] == Received(a.me, Drain())


def test_a_taken_port_is_said_with_a_remedy(open_mailbox: Open) -> None:
    taken = parse_endpoint(open_mailbox("a").me.endpoint)[1]
    with pytest.raises(MailboxError, match="in use.*choose another"):
        Mailbox("b", port=taken)


def test_wait_returns_for_the_callers_descriptor(open_mailbox: Open) -> None:
    a = open_mailbox("a")
    readable, writable = os.pipe()
    thread = threading.Thread(target=os.write, args=(writable, b"x"))
    thread.start()
    a.wait(PATIENCE, [readable])
    assert os.read(readable, 1) == b"x"
    thread.join()
    a.wait(0.0, [])
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_watched_mailbox_misses_nothing(
    open_mailbox: Open,
    start_other: Start,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Echoes through another process: each answer is awaited before the next word is sent, so a
    lost wake-up would stop the conversation; then the other dies, and is born again."""
    a = open_mailbox("a")
    other = start_other()

    async def talk() -> list[Arrival]:
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        seen: list[Arrival] = []

        async def up_to(wanted: Callable[[Arrival], bool]) -> None:
            while not seen or not wanted(seen[-1]):
                seen.append(await arrived.get())

        def deliver(arrivals: list[Arrival]) -> None:
            for arrival in arrivals:
                arrived.put_nowait(arrival)

        watch = Watch(a, asyncio.get_running_loop(), deliver)
        a.connect(other.endpoint)
        for number in range(200):
            a.send(other.endpoint, Cancel(1, number))
            await up_to(is_message(Cancel(1, number)))
        other.kill()
        await up_to(is_kind(Disconnected))
        start_other(other.port)
        await up_to(is_kind(Connected))
        a.send("nonsense", Identify())
        await up_to(is_kind(Disconnected))
        watch.close()
        return seen

    loop = new_loop()
    try:
        seen = loop.run_until_complete(asyncio.wait_for(talk(), PATIENCE))
    finally:
        loop.close()
    assert words(seen) == [Cancel(1, number) for number in range(200)]
    assert [arrival for arrival in seen if not isinstance(arrival, Received)] == [
        Connected(other.endpoint),
        Disconnected(other.endpoint),
        Connected(other.endpoint),
        Disconnected("nonsense"),
    ]
