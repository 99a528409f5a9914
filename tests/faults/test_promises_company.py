"""F7 and F13: leases of readers that die, hang or are busy; failures that leave nothing behind."""

import pytest

from penstock.bench.breaking.leaks import KINDS, fail_many
from penstock.bench.breaking.neighbours import TROUBLES, neighbours
from penstock.bench.breaking.parts import EndSettings
from penstock.bench.breaking.process import Nursery
from penstock.bench.breaking.reader import COMPLETE
from penstock.kvtransfer.incoming import Allowance
from support.fault_worker import FrozenDecode
from support.serving import until

LEASE_SECONDS = 2.0
BLOCKS = 20


class Pair:
    """A holder and a reader that are both processes of their own."""

    def __init__(self, nursery: Nursery, plane: str):
        settings = {"plane": plane, "lease_seconds": LEASE_SECONDS, "renew_every": 0.4}
        self.holder = nursery.start("holder", EndSettings(name="holder", **settings))
        self.reader = nursery.start("reader", EndSettings(name="reader", **settings))

    def lease(self) -> None:
        """A hand-over that the reader has reserved pages for, half of it published."""
        self.holder.begin(1, BLOCKS, self.reader.endpoint)
        self.holder.publish(1, BLOCKS // 2)
        until(lambda: self.reader.state()["held"] == BLOCKS, "pages reserved")

    def kill(self) -> None:
        self.holder.kill()
        self.reader.kill()


@pytest.fixture
def pair(nursery):
    pair = Pair(nursery, "shm")  # leases do not depend on the plane
    yield pair
    pair.kill()


def test_f7_pages_of_a_dead_reader_are_free_again(pair):
    pair.lease()
    pair.reader.kill()
    until(lambda: pair.holder.state()["held"] == 0, "pages of a dead reader's lease", 20)
    assert pair.holder.state()["ends"] == {"PEER_LOST": 1}


def test_f7_pages_of_a_hanging_reader_are_free_when_its_lease_ran_out(pair):
    pair.lease()
    pair.reader.stop()
    until(lambda: pair.holder.state()["held"] == 0, "pages of a hanging reader's lease", 20)
    assert pair.holder.state()["ends"] == {"EXPIRED": 1}
    pair.reader.go_on()
    until(lambda: pair.reader.state()["held"] == 0, "the reader hears that its lease ended", 20)
    assert pair.reader.state()["ended"] == [[1, 1, "EXPIRED"]]


def test_f7_a_reader_that_renews_keeps_its_lease_for_as_long_as_it_likes(scene_of):
    """Also where its admission is starved: no page was reserved, and none will be for a while."""
    scene = scene_of("shm", lease_seconds=LEASE_SECONDS, renew_every=0.4)
    reader = scene.reader
    reader.allowance = Allowance(sequences=0)
    scene.holder.hand(reader.next_request(), BLOCKS, reader.endpoint)
    reader.until(lambda: reader.incoming(1) is not None, "the offer")
    incoming = reader.incoming(1)
    assert incoming is not None
    passed = lambda: reader.reader._renew_at > incoming.arrived + 3 * LEASE_SECONDS  # noqa: E731
    reader.until(passed, "three lease times of renewals")
    assert scene.holder.state()["leases"] == 1 and reader.incoming(1) is incoming
    reader.allowance = Allowance(sequences=1)
    assert reader.settle(1).word == COMPLETE


def test_f7_a_frozen_step_stops_no_renewal(nursery):
    settings = EndSettings(plane="shm", name="holder", lease_seconds=LEASE_SECONDS)
    holder = nursery.start("holder", settings)
    decode = FrozenDecode(LEASE_SECONDS / 5)
    try:
        decode.freeze()
        holder.begin(1, BLOCKS, decode.endpoint)
        holder.publish(1, BLOCKS // 2)
        decode.run_for(3 * LEASE_SECONDS)
        assert decode.frozen and holder.state()["leases"] == 1
        holder.publish(1)
        decode.until(lambda: holder.state()["leases"] == 0, "the release")
        assert decode.frozen and holder.state()["ends"] == {"RELEASED": 1}
    finally:
        decode.close()
        holder.kill()


def test_f13_failures_leave_no_page_descriptor_or_memory_behind(scene_of, plane):
    scene = scene_of(plane, page_count=200)
    seen = fail_many(scene, 80)
    assert set(seen.kinds) == set(KINDS) and sum(seen.kinds.values()) == 80
    assert (seen.pages, seen.holder_pages) == (0, 0)
    assert seen.descriptors <= 2, seen
    assert seen.bytes < 12 << 20, seen
    assert seen.last == COMPLETE


def test_f13_the_failure_of_one_peer_costs_the_others_no_handover(scene_of, way):
    scene = scene_of(way, page_count=600)
    seen = neighbours(scene, rounds=1, blocks=60)
    assert seen.lost == 0
    assert all(len(seen.troubled[trouble]) == 1 for trouble in TROUBLES)
