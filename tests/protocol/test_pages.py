"""The page pool: every move by the table, generations before writes, nothing lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.protocol import pages
from penstock.protocol.page_states import MOVES, PageState
from penstock.protocol.pages import PagePool

ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))


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
    pool.seal(pages[0], ONE)
    pool.seal(pages[1], TWO)
    assert pool.lookup([ONE, TWO, THREE]) == pages
    assert pool.changes() == ([ONE, TWO], [])
    pool.share("b", pages)
    pool.release("a")
    assert pool.state(pages[0]) is PageState.SEALED
    pool.release("b")
    assert pool.state(pages[0]) is PageState.CACHED and pool.available == 3
    assert pool.take("c", 2) is not None  # one free page, then the later block goes first
    assert pool.lookup([ONE, TWO]) == [pages[0]]
    assert pool.changes() == ([], [TWO])
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
    pool.seal(one, ONE)
    pool.seal(two, ONE)
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

    FEW = pages.FEW  # from how many pages on moves are made as arrays

    def __init__(self):
        super().__init__()
        self.few, pages.FEW = pages.FEW, self.FEW
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
            self.pool.seal(page, data.draw(st.sampled_from([None, ONE, TWO, THREE])))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def seal_blocks(self, data):
        held = self.holders[data.draw(st.sampled_from(sorted(self.holders)))]
        arriving = {page for one in self.tickets.values() for page in one}
        open_pages = [one for one in held if self.pool.state(one) is PageState.OPEN]
        hashes = data.draw(st.permutations([ONE, TWO, THREE]))
        free = [page for page in open_pages if page not in arriving]
        count = min(len(free), len(hashes))
        self.pool.seal_blocks(free[:count], hashes[:count])
        assert [self.pool.content(page) for page in free[:count]] == hashes[:count]

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data):
        pages = self.pool.lookup([data.draw(st.sampled_from([ONE, TWO, THREE]))])
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
        assert all(bool(self.pool.lookup([one])) == (one in self.cached) for one in (ONE, TWO))

    def teardown(self):
        try:
            self.let_go()
        finally:
            pages.FEW = self.few

    def let_go(self):
        for ticket in self.tickets:
            self.pool.quiet(ticket)
        for holder in self.holders:
            self.pool.release(holder)
        assert self.pool.available == 8 and self.pool.quarantined == 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase


class ArrayMachine(PoolMachine):
    """The same histories, every move made as an array's."""

    FEW = 0


ArrayMachine.TestCase.settings = PoolMachine.TestCase.settings
TestArrayMachine = ArrayMachine.TestCase


@pytest.fixture(params=[pages.FEW, 0], ids=["one by one", "as arrays"])
def few(request, monkeypatch):
    monkeypatch.setattr(pages, "FEW", request.param)


def test_generations_are_raised_in_the_memory_that_was_given(few):
    memory = bytearray(8 * 4)
    pool = PagePool(memoryview(memory).cast("Q"))
    taken = granted(pool, "a", 3)
    assert taken == [0, 1, 2] and memoryview(memory).cast("Q").tolist() == [1, 1, 1, 0]
    pool.release("a")
    assert granted(pool, "b", 1) == [0]
    assert memoryview(memory).cast("Q").tolist() == [2, 1, 1, 0]


def test_a_forbidden_move_names_the_page_and_changes_nothing(few):
    pool = pool_of(6)
    taken = granted(pool, "a", 4)
    pool.seal(taken[0], ONE)
    pool.seal(taken[1], None, TWO)
    with pytest.raises(ValueError, match="page 2 is open; only sealed pages are shared"):
        pool.share("b", taken)
    with pytest.raises(ValueError, match="page 0 is sealed, not open for writing"):
        pool.expect("t", taken)
    pool = pool_of(6)
    taken = granted(pool, "a", 4)
    pool.expect("t", taken[2:3])
    with pytest.raises(ValueError, match="page 2 .*cannot be sealed: a transfer still writes it"):
        pool.seal_blocks(taken, [ONE, TWO, THREE, bytes(15) + b"4"])
    with pytest.raises(ValueError, match="a block's hash has 16 bytes"):
        pool.seal_blocks(taken[:2], [b"short", TWO])


def test_columns_of_pages(few):
    pool = pool_of(4)
    granted(pool, "a", 2)
    pool.seal_blocks([0, 1], [ONE, TWO])
    numbers, generations, contents = pool.columns([1, 0, 2])
    assert memoryview(numbers).cast("i").tolist() == [1, 0, 2]
    assert memoryview(generations).cast("Q").tolist() == [1, 1, 0]
    assert contents == TWO + ONE + bytes(16)
    assert pool.content(0) == ONE and pool.content(2) == b""


def test_pages_without_holder_go_oldest_and_latest_block_first(few):
    pool = pool_of(4)
    taken = granted(pool, "a", 4)
    pool.seal_blocks(taken[:3], [ONE, TWO, THREE])
    pool.release("a")
    assert pool.available == 4
    assert granted(pool, "b", 2) == [2, 3], "the free one, and the latest of the three blocks"
    assert pool.lookup([ONE, TWO, THREE]) == taken[:2] and pool.evictions == 1
    pool.check()
