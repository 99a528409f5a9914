"""F2 and F11: every read has a deadline of its own, and whoever loses one says so at once."""

import pytest

from penstock.kvtransfer.moves import Event
from penstock.kvtransfer.pace import (
    MARGIN,
    SLOWEST_BYTES_PER_SECOND,
    UNKNOWN_BYTES_PER_SECOND,
    WEIGHT,
    Paces,
)
from penstock.kvtransfer.plane import PlaneError
from penstock.protocol.messages import Failed, Release
from penstock.simulation.memory import PAGE_BYTES
from support.handover_ends import FIRST, ROUTER, Ends
from support.handover_workers import decode_worker

MB = 1_000_000


def posted(read_seconds: float = 2.0) -> Ends:
    """One read is open, posted at `now`, and does not end."""
    ends = Ends(read_seconds=read_seconds)
    lease, pages = ends.prompt()
    ends.settle(3)
    ends.plane.hold = True
    ends.holder.publish(lease, pages, FIRST)
    ends.turn()
    assert ends.plane.open
    return ends


def test_a_read_that_does_not_end_is_given_up_at_its_deadline() -> None:
    ends = posted(read_seconds=2.0)
    predicted = 6 * PAGE_BYTES / UNKNOWN_BYTES_PER_SECOND
    ends.settle(200)  # of ten milliseconds
    assert not ends.lost(), "the floor, and twice what is predicted"
    ends.turn(MARGIN * predicted + 1e-9)
    assert ends.lost() == [("TIMED_OUT", Event.TIMED_OUT.value)]
    assert not ends.holder.leases, "the holder was told"
    assert ends.reading.quarantined == 6, "bytes may still land"
    ends.plane.hold = False
    ends.settle()
    ends.nothing_stranded()


def test_a_plane_that_says_nothing_more_does_not_matter() -> None:
    ends = posted()
    ends.plane.progress = list  # type: ignore[method-assign]
    ends.settle(300)
    assert [event for event, _ in ends.lost()] == ["TIMED_OUT"]


def test_a_peer_of_whom_nothing_is_known_is_expected_to_be_slow() -> None:
    assert Paces().begun("a", 100 * MB) == MARGIN * 100 * MB / UNKNOWN_BYTES_PER_SECOND


def test_the_rate_is_learnt_from_large_reads() -> None:
    paces = Paces()
    paces.begun("a", 100 * MB)
    paces.ended("a", 100 * MB, 0.1)  # 1 GB/s
    learnt = UNKNOWN_BYTES_PER_SECOND + WEIGHT * (1e9 - UNKNOWN_BYTES_PER_SECOND)
    assert paces.begun("a", MB) == pytest.approx(MARGIN * MB / learnt)
    assert paces.begun("b", MB) == MARGIN * MB / UNKNOWN_BYTES_PER_SECOND, "each peer its own"
    paces.ended("a", MB)
    paces.begun("a", 1000)
    paces.ended("a", 1000, 5.0)  # of a small read the time says nothing
    assert paces.begun("a", MB) == pytest.approx(MARGIN * MB / learnt)


def test_reads_under_way_come_first() -> None:
    paces = Paces()
    alone = paces.begun("a", MB)
    assert paces.begun("a", MB) == 2 * alone
    paces.ended("a", MB)
    paces.ended("a", MB)
    assert paces.begun("a", MB) == alone


def test_a_slow_peer_gets_more_time_after_each_read_it_was_too_slow_for() -> None:
    paces = Paces()
    given = [paces.begun("a", MB)]
    for _ in range(12):
        paces.late("a")
        paces.ended("a", MB)
        given.append(paces.begun("a", MB))
    assert given[1] == 2 * given[0]
    assert given[-1] == MARGIN * MB / SLOWEST_BYTES_PER_SECOND, "but not for ever more"
    paces.forget("a")
    paces.late("a")
    paces.ended("a", MB, 1.0)
    assert paces.begun("a", MB) == given[0], "who answers there next is another"


@pytest.mark.parametrize("lost", [False, True], ids=["given up", "failed"])
def test_what_is_given_up_does_not_weigh_on_later_reads(lost: bool) -> None:
    ends = posted()
    if lost:
        ends.plane.hold, ends.plane.break_next = False, True
        ends.turn()
    else:
        ends.reader.cancel(1, 1)
        ends.plane.hold = False
        ends.turn()
    assert ends.reader._paces._paces["fake://prefill"].outstanding == 0


# --- F11 ---------------------------------------------------------------------------------------


def test_a_read_that_cannot_be_posted_is_said_to_both_in_the_same_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = Ends()
    worker = decode_worker(ends)
    lease, pages = ends.prompt()
    ends.carry()
    ends.holder.publish(lease, pages, FIRST)
    ends.carry()

    def broken(*arguments: object) -> int:
        raise PlaneError("the device is gone")

    monkeypatch.setattr(ends.plane, "read", broken)
    worker.turn(ends.now)
    said = list(ends.reader_wire.sent)
    assert ("fake://prefill", Release(lease.id)) in said
    failed = Failed(1, 1, "hand-over: the device is gone", True)
    assert (ROUTER.endpoint, failed) in said
    assert worker.turn(ends.now) > ends.now
    for to, message in said:
        if to == "fake://prefill":
            ends.holder.take(ends.reader_wire.me, message, ends.now)  # type: ignore[arg-type]
    ends.nothing_stranded()
    assert not ends.holder.leases


def test_what_was_read_in_the_turn_that_posted_it_is_finished_in_that_turn() -> None:
    """Over shared memory a small read is done at once; nothing else may wake the loop after it."""
    ends = Ends()
    lease, pages = ends.prompt()
    ends.settle(3)
    read, progress = ends.plane.read, ends.plane.progress

    def read_at_once(*words: object) -> int:
        ticket = read(*words)  # type: ignore[arg-type]
        done = progress()
        while not done:
            ends.holder_plane.progress()
            done = progress()
        ends.plane.progress = lambda: [done.pop()] if done else []  # type: ignore[method-assign]
        return ticket

    ends.plane.read = read_at_once  # type: ignore[method-assign]
    ends.holder.publish(lease, pages, FIRST)
    ends.turn()
    assert [one.handoff.lease for one in ends.complete()] == [lease.id]
