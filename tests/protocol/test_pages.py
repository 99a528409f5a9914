"""The page pool: every move by the table, generations before writes, nothing lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.protocol.pages import MOVES, PagePool, PageState


def pool_of(count: int) -> PagePool:
    return PagePool([0] * count)


def granted(pool: PagePool, holder: str, count: int) -> list[int]:
    pages = pool.take(holder, count)
    assert pages is not None
    return pages


def test_take_raises_generations_and_refuses_more_than_there_is():
    pool = pool_of(4)
    pages = granted(pool, "a", 3)
    assert pages == [0, 1, 2]
    assert [pool.generation(page) for page in range(4)] == [1, 1, 1, 0]
    assert pool.take("b", 2) is None
    assert pool.held == 3 and pool.available == 1
    pool.release("a")
    assert pool.available == 4
    assert [pool.generation(page) for page in range(4)] == [1, 1, 1, 0], "raised by take alone"


def test_sealed_blocks_are_found_shared_and_evicted_oldest_first():
    pool = pool_of(3)
    pages = granted(pool, "a", 2)
    pool.seal(pages[0], b"one")
    pool.seal(pages[1], b"two")
    assert pool.lookup([b"one", b"two", b"three"]) == pages
    assert pool.changes() == ([b"one", b"two"], [])
    pool.share("b", pages)
    pool.release("a")
    assert pool.state(pages[0]) is PageState.SEALED
    pool.release("b")
    assert pool.state(pages[0]) is PageState.CACHED and pool.available == 3
    assert pool.take("c", 2) is not None  # one free page, then the later block goes first
    assert pool.lookup([b"one", b"two"]) == [pages[0]]
    assert pool.changes() == ([], [b"two"])
    assert pool.evictions == 1


def test_open_and_foreign_pages_are_not_shared_or_sealed():
    pool = pool_of(2)
    (page,) = granted(pool, "a", 1)
    with pytest.raises(ValueError, match="only sealed"):
        pool.share("b", [page])
    with pytest.raises(ValueError, match="cannot go"):
        pool.seal(1 - page, None)
    pool.expect("t", [page])
    with pytest.raises(ValueError, match="still writes"):
        pool.seal(page, None)
    pool.quiet("t")
    pool.seal(page, None)
    with pytest.raises(ValueError, match="not open"):
        pool.expect("t", [page])


def test_a_page_that_bytes_may_reach_is_quarantined():
    pool = pool_of(2)
    pages = granted(pool, "a", 2)
    pool.expect("first", pages)
    pool.release("a")
    assert pool.available == 0 and pool.quarantined == 2
    pool.check()
    pool.quiet("first")
    assert pool.available == 2 and pool.quarantined == 0
    pool.quiet("first")  # said twice: nothing happens


def test_the_same_block_computed_twice_is_cached_once():
    pool = pool_of(2)
    (one,), (two,) = granted(pool, "a", 1), granted(pool, "b", 1)
    pool.seal(one, b"block")
    pool.seal(two, b"block")
    pool.release("a")
    pool.release("b")
    assert pool.state(one) is PageState.CACHED and pool.state(two) is PageState.FREE
    pool.check()


def test_rename_moves_everything_a_holder_has():
    pool = pool_of(3)
    pages = granted(pool, "a", 2)
    pool.rename("a", "b")
    assert pool.pages_of("a") == [] and pool.pages_of("b") == pages
    pool.take("c", 1)
    with pytest.raises(ValueError, match="already"):
        pool.rename("b", "c")


def test_every_state_has_a_row():
    assert set(MOVES) == set(PageState)


class PoolMachine(RuleBasedStateMachine):
    """Random histories; the pool's own check after each step, and a shadow of generations."""

    def __init__(self):
        super().__init__()
        self.pool = pool_of(8)
        self.holders: dict[int, list[int]] = {}
        self.tickets: dict[int, list[int]] = {}
        self.seen = [0] * 8
        self.count = 0
        self.cached: set[bytes] = set()

    def fresh(self) -> int:
        self.count += 1
        return self.count

    @rule(count=st.integers(1, 4))
    def take(self, count):
        available = self.pool.available
        holder = self.fresh()
        pages = self.pool.take(holder, count)
        assert (pages is None) == (count > available)
        for page in pages or []:
            assert self.pool.generation(page) == self.seen[page] + 1
            self.seen[page] += 1
            assert not any(page in arriving for arriving in self.tickets.values())
        if pages:
            self.holders[holder] = pages

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def seal(self, data):
        pages = data.draw(st.sampled_from(sorted(self.holders.values())))
        page = data.draw(st.sampled_from(pages))
        arriving = any(page in one for one in self.tickets.values())
        if self.pool.state(page) is PageState.OPEN and not arriving:
            self.pool.seal(page, data.draw(st.sampled_from([None, b"a", b"b", b"c"])))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data):
        pages = self.pool.lookup([data.draw(st.sampled_from([b"a", b"b", b"c"]))])
        if pages:
            holder = self.fresh()
            self.pool.share(holder, pages)
            self.holders[holder] = pages

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def expect(self, data):
        holder = data.draw(st.sampled_from(sorted(self.holders)))
        pages = [one for one in self.holders[holder] if self.pool.state(one) is PageState.OPEN]
        ticket = self.fresh()
        self.pool.expect(ticket, pages)
        self.tickets[ticket] = pages

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def quiet(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.tickets)))
        del self.tickets[ticket]
        self.pool.quiet(ticket)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = data.draw(st.sampled_from(sorted(self.holders)))
        del self.holders[holder]
        self.pool.release(holder)

    @invariant()
    def consistent(self):
        self.pool.check()
        added, removed = self.pool.changes()
        self.cached = (self.cached - set(removed)) | set(added)
        assert all(bool(self.pool.lookup([one])) == (one in self.cached) for one in (b"a", b"b"))

    def teardown(self):
        for ticket in self.tickets:
            self.pool.quiet(ticket)
        for holder in self.holders:
            self.pool.release(holder)
        assert self.pool.available == 8 and self.pool.quarantined == 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
