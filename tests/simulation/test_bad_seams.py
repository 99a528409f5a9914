"""The simulated plane and links are as bad as they are said to be, and no worse."""

import random
from array import array

import pytest

from penstock.kvtransfer.plane import STALE
from penstock.protocol.messages import Cancel
from penstock.protocol.pages import PagePool
from penstock.protocol.seams import Connected, Disconnected, Received
from penstock.simulation.chance import Chance, Crashed, Violation
from penstock.simulation.faulty_plane import FaultyPlane, PlaneOdds
from penstock.simulation.links import Links
from penstock.simulation.memory import EMPTY, Memory

PAGES = 8
HOLDER = "sim://holder"


class Pair:
    """A holder and a reader whose pool has granted all its pages."""

    def __init__(self, **odds):
        self.chance = Chance(1, 0, random.Random(1))
        self.parted = False
        planes = {}
        drawn = PlaneOdds(**{"wire": True, "fails": 0.0, "refuses": 0.0, "flips": 0.0, **odds})
        self.holder, self.reader = (
            FaultyPlane(self.chance, drawn, Memory(PAGES), name, planes, lambda *_: self.parted)
            for name in (HOLDER, "sim://reader")
        )
        self.reader.pool = PagePool(self.reader.memory.generations)
        assert self.reader.pool.take("me", PAGES) is not None
        for page in range(PAGES):
            self.holder.memory.write(page, 0, array("i", [page] * 4))
        self.reader.add_peer(HOLDER, 1, self.holder.metadata())
        self.chance.calm = False

    def read(self, expected=None) -> int:
        return self.reader.read(HOLDER, range(PAGES), range(PAGES), expected)

    @property
    def landed(self) -> int:
        return sum(one != EMPTY for one in self.reader.memory.tokens)

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.chance.turn += 1
            self.reader.move()

    def until_over(self, ticket: int) -> None:
        while not self.reader.transfers[ticket].over:
            self.turn()


def test_bytes_come_piecemeal_and_complete_only_when_the_holder_goes_on():
    pair = Pair()
    seen = set()
    ticket = pair.read()
    pair.reader.transfers[ticket].rate = 1
    while not pair.reader.transfers[ticket].over:
        pair.turn()
        seen.add(pair.landed)
    assert len(seen) > PAGES, "many turns, half a page at a time"
    assert pair.reader.progress() == [], "the holder has not looked since"
    pair.holder.progress()
    (done,) = pair.reader.progress()
    assert (done.failed, done.quiet, len(done.generations)) == ("", True, PAGES)
    assert pair.reader.memory.tokens == pair.holder.memory.tokens
    assert pair.reader.quiet(ticket) and pair.reader.progress() == []


def test_generations_are_read_after_the_data():
    pair = Pair()
    pair.until_over(pair.read())
    pair.holder.memory.generations[3] += 1
    pair.holder.progress()
    (done,) = pair.reader.progress()
    assert done.generations[3] == 1


def test_other_generations_than_expected_end_the_read_before_a_byte_moves():
    pair = Pair()
    pair.read([0] * (PAGES - 1) + [7])
    pair.turn(100)
    (done,) = pair.reader.progress()
    assert done.failed == STALE and done.quiet
    assert pair.landed == 0


@pytest.mark.parametrize("end", ["fail", "abandon", "remove"])
def test_bytes_land_after_a_read_was_given_up(end):
    late = 0
    for seed in range(40):
        pair = Pair(fails=1.0 if end == "fail" else 0.0)
        pair.chance.rng.seed(seed)
        ticket = pair.read()
        pair.turn(3)
        if end == "abandon":
            pair.reader.abandon(ticket)
        elif end == "remove":
            pair.reader.remove_peer(HOLDER)
        told = []
        while not told:
            pair.turn()
            pair.holder.progress()
            told = pair.reader.progress()
        assert told[0].failed
        assert told[0].quiet == pair.reader.quiet(ticket)
        before = pair.landed
        pair.turn(400)
        assert pair.reader.quiet(ticket) and pair.reader.progress() == []
        late += pair.landed > before
        assert told[0].quiet <= (pair.landed == before), "quiet is quiet"
    assert late > 4


def test_a_partition_stops_the_bytes_and_a_dead_holder_ends_the_read():
    pair = Pair()
    pair.parted = True
    pair.read()
    pair.turn(100)
    assert pair.landed == 0 and pair.reader.progress() == []
    pair.parted, pair.holder.alive = False, False
    pair.turn()
    (done,) = pair.reader.progress()
    assert done.failed == "the holder is gone"


def test_a_flipped_byte_is_one_slot_of_one_page():
    pair = Pair(flips=1.0)
    pair.until_over(pair.read())
    both = zip(pair.reader.memory.tokens, pair.holder.memory.tokens, strict=True)
    assert sum(one != other for one, other in both) == 1


def test_bytes_in_a_page_that_was_granted_again_are_a_violation():
    pair = Pair()
    pair.read()
    pool = pair.reader.pool
    assert pool is not None
    pool.release("me")
    assert pool.take("another", PAGES) is not None
    with pytest.raises(Violation, match="granted again"):
        pair.turn(100)


def links(level: int):
    chance = Chance(1, level, random.Random(1))
    made = Links(chance)
    made.odds.slowest = 10
    one, other = made.mailbox("one"), made.mailbox("other")
    chance.calm = False
    return chance, made, one, other


def said(chance, one, other, count=300, turns=2000):
    """What `other` hears, by number, when `one` says one word per turn."""
    heard = []
    for turn in range(turns):
        chance.turn += 1
        if turn < count:
            one.send(other.me.endpoint, Cancel(turn, 1))
        for arrival in other.receive():
            if isinstance(arrival, Received):
                assert isinstance(arrival.message, Cancel)
                heard.append(arrival.message.request)
    return heard


def test_level_0_keeps_order_and_loses_nothing():
    chance, _, one, other = links(0)
    assert said(chance, one, other) == list(range(300))


def test_level_1_doubles_and_level_2_loses_and_reorders():
    chance, _, one, other = links(1)
    heard = said(chance, one, other)
    assert set(heard) == set(range(300)) and len(heard) > 300
    firsts = sorted(set(heard), key=heard.index)
    assert firsts == list(range(300)), "but for the doubles it keeps the order"
    chance, made, one, other = links(2)
    made.odds.lost = made.odds.overtaken = 0.1
    heard = said(chance, one, other)
    assert len(set(heard)) < 300
    assert sorted(set(heard), key=heard.index) != sorted(set(heard))


def test_a_partition_holds_words_back_until_it_ends():
    chance, made, one, other = links(0)
    made.cut(one.me.endpoint, other.me.endpoint, until=500)
    one.send(other.me.endpoint, Cancel(1, 1))
    assert made.is_cut(other.me.endpoint, one.me.endpoint)
    chance.turn = 499
    assert other.receive() == []
    chance.turn = 520
    assert len(other.receive()) == 1


def test_a_broken_link_loses_what_was_under_way_and_comes_back():
    chance, made, one, other = links(0)
    one.connect(other.me.endpoint)
    assert one.receive() == [Connected(other.me.endpoint)]
    one.send(other.me.endpoint, Cancel(1, 1))
    assert made.break_link(one.me.endpoint, other.me.endpoint)
    one.send(other.me.endpoint, Cancel(2, 1))  # waits for the link
    assert one.receive() == [Disconnected(other.me.endpoint)]
    chance.turn += 5
    assert one.receive() == [Connected(other.me.endpoint)]
    chance.turn += 20
    (arrival,) = other.receive()
    assert isinstance(arrival, Received) and arrival.message == Cancel(2, 1)


def test_a_fuse_ends_the_process_between_two_words():
    _, made, one, other = links(0)
    one.fuse = 1
    one.send(other.me.endpoint, Cancel(1, 1))
    with pytest.raises(Crashed):
        one.send(other.me.endpoint, Cancel(2, 1))
    made.kill(one)
    assert len(other.due) == 1, "what was said before still arrives"
