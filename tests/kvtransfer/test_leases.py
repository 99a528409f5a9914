"""F7: pages are free soon after their reader dies, and never while it lives."""

import pytest

from penstock.kvtransfer.incoming import Allowance
from penstock.kvtransfer.moves import Event
from penstock.protocol.messages import Failed, Release
from penstock.protocol.seams import Disconnected, Received
from support.handover_ends import FIRST, LEASE_SECONDS, PAGES, ROUTER, Ends
from support.handover_workers import decode_worker, prefill_worker


def published(ends: Ends) -> None:
    """A prompt whose blocks only the lease holds."""
    lease, pages = ends.prompt()
    ends.carry()
    ends.holder.publish(lease, pages, FIRST)
    ends.holding.release(("sequence", 1))


def starved(waiting_seconds: float) -> Ends:
    """A prompt is published, and its reader's pages are all another's."""
    ends = Ends(waiting_seconds=waiting_seconds)
    ends.reading.take("others", PAGES)
    published(ends)
    return ends


def test_a_reader_that_falls_silent_holds_pages_for_its_lease_and_no_longer() -> None:
    ends = Ends()
    published(ends)
    ends.carry()
    ends.reader_wire.sent.clear()
    now = 0.0
    while ends.holding.held:
        due = ends.holder.turn(now)
        assert now < due <= LEASE_SECONDS
        ends.holder.turn(due - 1e-6)
        assert ends.holding.held == 6, "not before"
        now = due
        ends.holder.turn(now)
    assert now == LEASE_SECONDS
    assert [lease.ended_by for lease in ends.holder.ended] == [Event.EXPIRED]


def test_a_reader_whose_link_breaks_holds_nothing() -> None:
    ends = Ends()
    worker = prefill_worker(ends)
    published(ends)
    arrived = [Disconnected("fake://decode")]
    ends.holder_wire.receive = lambda: arrived  # type: ignore[method-assign]
    worker.turn(0.1)
    assert ends.holding.held == 0
    failed = Failed(1, 1, f"hand-over: {Event.PEER_LOST.value}", True)
    assert (ROUTER.endpoint, failed) in ends.holder_wire.sent, "the router places it again"


@pytest.mark.parametrize("busy", [False, True], ids=["idle engines", "held engines"])
def test_a_lease_lives_as_long_as_its_reader_whatever_the_engines_do(busy: bool) -> None:
    """Both loops come back when they said they would, and at no other time; the read never ends,
    and a step that never ends runs on both sides."""
    ends = Ends(read_seconds=1000.0)
    ends.plane.hold = True
    published(ends)
    prefill, decode = prefill_worker(ends, busy), decode_worker(ends, busy)
    wires = ((ends.holder_wire, ends.reader_wire), (ends.reader_wire, ends.holder_wire))
    now, turns = 0.0, 0
    while now < 12 * LEASE_SECONDS:
        for source, target in wires:
            arrived = [
                Received(source.me, said) for to, said in source.sent if to == target.me.endpoint
            ]
            source.sent.clear()
            target.receive = lambda arrived=arrived: arrived  # type: ignore[method-assign]
            worker = prefill if target is ends.holder_wire else decode
            worker.turn(now)
        turns += 1
        assert len(ends.holder.leases) == 1 and not ends.reader.lost, f"ended at {now}"
        now += LEASE_SECONDS / 4
        ends.reader_wire.receive = ends.holder_wire.receive = list  # type: ignore[method-assign]
    assert turns == 48


def test_a_loop_with_a_hand_over_comes_back_in_time_to_renew() -> None:
    ends = Ends(read_seconds=1000.0)
    ends.plane.hold = True
    published(ends)
    decode = decode_worker(ends, busy=True)
    ends.carry()
    now, renewed = 0.0, []
    while now < 3 * LEASE_SECONDS:
        due = ends.reader.turn(Allowance(8), now)
        assert now < due <= now + LEASE_SECONDS / 4
        if ends.carry():
            renewed.append(now)
        now = due
    assert renewed and ends.holder.leases
    assert decode.turn(now) <= now + LEASE_SECONDS / 4


def test_a_hand_over_that_waits_for_pages_is_renewed_too() -> None:
    """Admission is starved: no page is free, and nothing new is scheduled."""
    ends = starved(waiting_seconds=100.0)
    for _ in range(90):
        ends.turn(1.0)
        assert ends.holder.leases
    ends.reading.release("others")
    ends.completes()


def test_a_hand_over_for_which_no_page_becomes_free_ends_on_both_sides() -> None:
    ends = starved(waiting_seconds=20.0)
    for _ in range(22):
        ends.turn(1.0)
    assert ends.lost() == [("TIMED_OUT", "no pages became free in time")]
    assert not ends.holder.leases and ends.holding.held == 0


def test_an_expired_lease_is_said_to_both_and_late_words_change_nothing() -> None:
    ends = Ends()
    published(ends)
    (lease,) = ends.holder.leases.values()
    ends.carry()
    ends.reader_wire.sent.clear()
    ends.now += LEASE_SECONDS
    ends.holder.turn(ends.now)
    ends.carry()
    assert ends.lost() == [("EXPIRED", Event.EXPIRED.value)]
    ends.holder.take(ends.reader_wire.me, Release(lease.id), ends.now)
    ends.settle(3)
    ends.nothing_stranded()


def test_a_hand_over_in_a_queue_that_moves_waits_as_long_as_it_takes() -> None:
    """Its worker is full of long answers: placed again it would only lose its turn."""
    ends = starved(waiting_seconds=5.0)
    for answer in range(20):
        ends.turn(4.0)
        ends.reading.rename("others" if answer == 0 else answer - 1, answer)
        ends.reading.release(answer)
        ends.reading.take(answer, PAGES)  # another answer, older than the hand-over
        assert not ends.lost()
    ends.reading.release(19)
    ends.completes()
