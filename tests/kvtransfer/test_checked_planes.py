"""F10 over real planes: bytes that differ from what was published never reach a cache."""

import random
from collections.abc import Iterator

import pytest

from support.plane_ends import PlaneEnds

PAGE_BYTES = 4096
PAGES = 64
BLOCKS = 6
FLIPS = 40


@pytest.fixture(params=["shm", "zmq", "nixl"])
def ends(request: pytest.FixtureRequest) -> Iterator[PlaneEnds]:
    opened = PlaneEnds(request.param, PAGE_BYTES, PAGES, checked=True)
    yield opened
    opened.close()


def test_every_flipped_bit_is_caught_and_ends_its_request_alone(ends: PlaneEnds) -> None:
    chance = random.Random(11)
    for flip in range(FLIPS):
        victim = ends.compute(2 * flip, BLOCKS, chance)
        other = ends.compute(2 * flip + 1, BLOCKS, chance)
        ends.holder.turn(0.0)  # digested
        block = chance.randrange(BLOCKS)
        # The page as it is now, after its digest was taken: as if the wire had changed it.
        ends.source.memory.page(victim[block])[chance.randrange(PAGE_BYTES)] ^= (
            1 << chance.randrange(8)
        )
        sent = ends.source.pages(other)
        ends.settle(2)
        (lost,), (whole,) = ends.reader.lost, ends.reader.complete
        assert lost.handoff.prefill.request == 2 * flip
        assert lost.reason.startswith(f"block {block} is corrupt")
        assert whole.handoff.prefill.request == 2 * flip + 1
        assert ends.target.pages(whole.pages) == sent
        ends.target.pool.release(whole.pool_holder)
        ends.reader.lost.clear()
        ends.reader.complete.clear()
        ends.target.pool.check()
        assert ends.target.pool.held == ends.source.pool.held == 0
