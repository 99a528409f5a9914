"""Mailboxes over real sockets and real processes: delivery, breaks, rebirth, keys, garbage."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
import zmq

from penstock.protocol import codec, link, reception, sockets
from penstock.protocol.addresses import parse_endpoint
from penstock.protocol.clusterkey import ClusterKey, write_key
from penstock.protocol.messages import Cancel, Drain, Identify, LeaseEnded, Peer, Refused
from penstock.protocol.seams import Arrival, Connected, Disconnected, Received
from penstock.protocol.sockets import Mailbox, MailboxError
from penstock.protocol.watch import Watch

PATIENCE = 20.0  # a deadlock's end, not a measurement

Open = Callable[..., Mailbox]


@pytest.fixture
def open_mailbox() -> Iterator[Open]:
    opened: list[Mailbox] = []

    def make(name: str, **options: object) -> Mailbox:
        opened.append(Mailbox(name, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for mailbox in opened:
        mailbox.close()


def until(mailbox: Mailbox, wanted: Callable[[Arrival], bool]) -> list[Arrival]:
    """Everything that arrives up to the first wanted arrival."""
    seen: list[Arrival] = []
    clock = sockets.SystemClock()
    give_up = clock.now() + PATIENCE
    while clock.now() < give_up:
        mailbox.wait(1.0)
        seen += mailbox.receive()
        if any(wanted(arrival) for arrival in seen):
            return seen
    raise AssertionError(f"not seen within {PATIENCE} s; seen: {seen[:5]}")


def is_message(message: object) -> Callable[[Arrival], bool]:
    return lambda arrival: isinstance(arrival, Received) and arrival.message == message


def is_kind(kind: type) -> Callable[[Arrival], bool]:
    return lambda arrival: isinstance(arrival, kind)


def words(arrivals: list[Arrival]) -> list[object]:
    return [arrival.message for arrival in arrivals if isinstance(arrival, Received)]


class Other:
    """Another process with a mailbox; it writes down the reasons of the Refused it receives."""

    PROGRAM = """
import sys
from penstock.protocol.messages import Refused
from penstock.protocol.seams import Received
from penstock.protocol.sockets import Mailbox
mailbox = Mailbox("other", port=int(sys.argv[1]))
print(mailbox.me.endpoint, flush=True)
if sys.argv[2] == "deaf":
    sys.stdin.read()
while True:
    mailbox.wait(60.0)
    for arrival in mailbox.receive():
        if isinstance(arrival, Received):
            if isinstance(arrival.message, Refused):
                print(arrival.message.reason, flush=True)
            mailbox.send(arrival.sender.endpoint, arrival.message)
"""

    def __init__(self, port: int = 0, mode: str = "listening") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(port), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def port(self) -> int:
        return parse_endpoint(self.endpoint)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start_other() -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(port: int = 0, mode: str = "listening") -> Other:
        started.append(Other(port, mode))
        return started[-1]

    yield start
    for other in started:
        if other.process.returncode is None:
            other.kill()


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


def test_a_kept_endpoint_is_tried_until_somebody_answers(
    open_mailbox: Open, start_other: Callable[..., Other]
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


def test_an_endpoint_nobody_answers_is_said_once(
    open_mailbox: Open, start_other: Callable[..., Other]
) -> None:
    gone = start_other()
    gone.kill()
    a = open_mailbox("a")
    a.send(gone.endpoint, Identify())
    assert until(a, is_kind(Disconnected)) == [Disconnected(gone.endpoint)]
    assert a.counters.discarded == 1
    assert a.seconds_until_due() is None


def test_a_killed_peer_is_said_and_a_new_one_is_reached(
    open_mailbox: Open, start_other: Callable[..., Other]
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
    open_mailbox: Open, start_other: Callable[..., Other], kept: bool
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
    open_mailbox: Open, start_other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
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
    open_mailbox: Open, start_other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
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
    open_mailbox: Open, start_other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
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


def test_forget_drops_what_waits_and_says_nothing(
    open_mailbox: Open, start_other: Callable[..., Other]
) -> None:
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


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_watched_mailbox_misses_nothing(
    open_mailbox: Open,
    start_other: Callable[..., Other],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Echoes through another process: each answer is awaited before the next word is sent, so a
    lost wake-up would stop the conversation; then the other dies, and is born again."""
    a = open_mailbox("a")

    async def talk() -> None:
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()

        def deliver(arrivals: list[Arrival]) -> None:
            for arrival in arrivals:
                arrived.put_nowait(arrival)

        watch = Watch(a, asyncio.get_running_loop(), deliver)
        other = start_other()
        a.connect(other.endpoint)
        for number in range(200):
            a.send(other.endpoint, Cancel(1, number))
            while not is_message(Cancel(1, number))(await arrived.get()):
                pass
        other.kill()
        while await arrived.get() != Disconnected(other.endpoint):
            pass
        start_other(other.port)
        while await arrived.get() != Connected(other.endpoint):
            pass
        a.send("nonsense", Identify())
        while await arrived.get() != Disconnected("nonsense"):
            pass
        watch.close()

    loop = new_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(talk(), PATIENCE))
    finally:
        loop.close()
