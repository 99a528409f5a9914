"""Our own standstill is nobody's lateness: what came meanwhile counts, on every plane."""

import importlib.util
import random
from collections.abc import Iterator

import pytest

from penstock.kvtransfer.moves import Event
from penstock.kvtransfer.own_time import CATCH_UP
from support.plane_ends import PlaneEnds
from support.plane_world import until

PAGE_BYTES = 64 << 10
BLOCKS = 60  # 4 MB, so that a read takes many calls of progress
BYTES_PER_POST = 128 << 10
READ_SECONDS = 2.0
POLL = 0.0002
STANDSTILL = 60.0  # SIGSTOP and SIGCONT, as the clock says afterwards

needs_nixl = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)


def opened(plane: str) -> PlaneEnds:
    return PlaneEnds(
        plane, PAGE_BYTES, BLOCKS, read_seconds=READ_SECONDS, bytes_per_post=BYTES_PER_POST
    )


@pytest.fixture(params=[pytest.param("nixl", marks=needs_nixl), "tcp", "zmq", "shm"])
def ends(request: pytest.FixtureRequest) -> Iterator[PlaneEnds]:
    ends = opened(request.param)
    yield ends
    ends.close()


def post(ends: PlaneEnds) -> list[bytes]:
    """A read is open, and has begun; what it is to bring."""
    pages = ends.compute(1, BLOCKS, random.Random(5))
    until(lambda: bool(ends.reader.open_reads), ends.both, "the read")
    assert not ends.reader.complete
    return ends.source.pages(pages)


@pytest.mark.parametrize("before", [0.0, READ_SECONDS], ids=["fresh", "at its deadline"])
def test_a_reader_that_was_stopped_takes_what_came_meanwhile(
    ends: PlaneEnds, before: float
) -> None:
    sent = post(ends)
    (incoming,) = ends.reader.incoming.values()
    (read,) = incoming.reads.values()
    ends.target.plane.progress = list  # type: ignore[method-assign]
    while ends.now < before:
        ends.look(0.05)
    del ends.target.plane.progress  # nothing was collected up to here
    assert incoming.reads and ends.now <= read.limit
    for _ in range(300):  # the reader is stopped, and its holder is not
        ends.hold()
    ends.now += STANDSTILL
    ends.settle(1, lambda: (ends.look(POLL), ends.hold()))
    assert not ends.reader.lost
    (whole,) = ends.reader.complete
    assert ends.target.pages(whole.pages) == sent


@pytest.mark.parametrize("plane", ["tcp", "zmq"])
def test_a_holder_that_hangs_is_given_up_all_the_same(plane: str) -> None:
    """On the planes that need it; through shared memory and NIXL it is read to its end."""
    ends = opened(plane)
    post(ends)
    ends.now += STANDSTILL
    resumed = ends.now
    while not ends.reader.lost:
        ends.look(0.01)
        assert ends.now < resumed + 10 * READ_SECONDS
    assert [lost.event for lost in ends.reader.lost] == [Event.TIMED_OUT]
    assert ends.now > resumed + CATCH_UP
    ends.close()
