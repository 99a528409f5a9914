"""F10 without processes: what is published when, what is compared, and who ends."""

import random

import pytest

from penstock.kvtransfer.columns import pack
from penstock.kvtransfer.digests import BYTES_PER_TURN, DigestQueue, HostDigests
from penstock.kvtransfer.holder import Holder
from penstock.kvtransfer.incoming import Allowance
from penstock.kvtransfer.moves import Event, LeaseState
from penstock.kvtransfer.plane import PlaneError
from penstock.kvtransfer.words import Offence
from penstock.protocol.memory import PageMemory
from penstock.protocol.messages import FirstTokens, Published
from penstock.protocol.pages import PagePool
from penstock.simulation.memory import PAGE_BYTES, SLOTS
from support.handover_ends import COMPATIBILITY, FIRST, PROMPT, Ends, Wire


@pytest.fixture
def ends() -> Ends:
    return Ends(checked=True)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Both digest one page a turn."""
    monkeypatch.setattr(DigestQueue.__init__, "__defaults__", (PAGE_BYTES,))
    return Ends(checked=True)


def published_slowly(slow: Ends) -> None:
    """A prompt of six pages, digested and said one by one."""
    slow.publish_prompt()
    for _ in range(6):
        slow.holder.turn(slow.now)


def publications(carried: list) -> list[Published]:
    return [message for message in carried if isinstance(message, Published)]


def flip(ends: Ends, page: int, bit: int) -> None:
    """One bit of the holder's page, after its digest was taken."""
    tokens = ends.source.tokens
    tokens[page * SLOTS + bit // 31] ^= 1 << bit % 31


def test_what_fits_a_turn_is_published_at_once_with_its_digests(ends: Ends) -> None:
    lease, pages = ends.prompt()
    ends.holder.publish(lease, pages, FIRST)
    assert not publications(ends.holder_wire.take()[1:]), "nothing is said before its digest"
    ends.holder.turn(ends.now)
    (said,) = publications(ends.holder_wire.take())
    assert (len(said.digests), len(said.pages)) == (6 * 8, 6 * 4) and said.first_tokens is FIRST
    assert lease.state is LeaseState.PUBLISHED


def test_pages_are_published_as_they_are_digested(slow: Ends) -> None:
    ends = slow
    lease, pages = ends.prompt()
    ends.settle(3)
    ends.holder.publish(lease, pages[:4], None)
    ends.holder.publish(lease, pages[4:], FIRST)
    for turn in range(6):
        assert lease.state is LeaseState.PUBLISHING
        assert not ends.reader.complete
        due = ends.holder.turn(ends.now)
        assert (due == ends.now) == (turn < 5), "it comes back at once while something waits"
        (said,) = publications(ends.carry())
        assert (said.first_block, len(said.pages)) == (turn, 4)
        assert (said.first_tokens is None) == (turn < 5), "the last words come with the last block"
        assert ends.holder.has_published
    assert lease.state is LeaseState.PUBLISHED
    ends.settle()
    (incoming,) = ends.complete()
    assert ends.target.prefix(incoming.pages, len(PROMPT)) == PROMPT
    ends.nothing_stranded()


def test_the_reader_checks_a_part_each_turn_and_caches_nothing_before(slow: Ends) -> None:
    published_slowly(slow)
    slow.carry()
    (incoming,) = slow.reader.incoming.values()
    found = []
    while not slow.reader.complete:
        slow.turn()
        found.append(len(slow.reading.lookup(incoming.hashes)))
    assert set(found) == {0, 1, 2, 3, 4, 5}, "blocks can be found one by one, checked"
    slow.nothing_stranded()


def test_a_reader_with_checks_to_do_comes_back_at_once(ends: Ends) -> None:
    lease, pages = ends.prompt()
    ends.holder.publish(lease, pages, FIRST)
    ends.holder.turn(0.0)
    ends.carry()
    assert ends.reader.turn(Allowance(8), 5.0) == 5.0
    assert ends.reader.turn(Allowance(8), 5.0) > 5.0
    assert len(ends.complete()) == 1


@pytest.mark.parametrize("seed", range(40))
def test_every_flipped_block_is_caught_and_named_and_ends_one_request(seed: int) -> None:
    chance = random.Random(seed)
    ends = Ends(checked=True)
    prompts = {number: [1000 * number + token for token in PROMPT] for number in (1, 2, 3)}
    opened = {number: ends.prompt(number, tokens) for number, tokens in prompts.items()}
    ends.settle(3)
    ends.plane.hold = True
    for lease, pages in opened.values():
        ends.holder.publish(lease, pages, FIRST)
    ends.settle(3)
    victim = chance.choice(list(opened))
    block = chance.randrange(6)
    # The tail is one token long; the rest of its page travels, too, and is not free to differ.
    flip(ends, opened[victim][1][block], chance.randrange(31 * SLOTS))
    ends.plane.hold = False
    ends.settle()
    reason = f"block {block} is corrupt: its bytes are not those that were published"
    assert ends.lost() == [(Event.CORRUPT.name, reason)]
    assert ends.reader.lost[0].handoff.lease == opened[victim][0].id
    for incoming in ends.complete():
        right = prompts[incoming.handoff.prefill.request]
        assert ends.target.prefix(incoming.pages, len(PROMPT)) == right
    assert len(ends.complete()) == 2
    corrupt = ends.holding.content(opened[victim][1][block])
    assert not corrupt or not ends.reading.lookup([corrupt]), "it can be found by nobody"
    ends.nothing_stranded()


@pytest.mark.parametrize("end", ["cancel", "expire", "lose the reader", "release"])
def test_an_end_while_pages_wait_for_their_digest_lets_them_go(slow: Ends, end: str) -> None:
    slow.publish_prompt()
    slow.turn()
    slow.holding.release(("sequence", 1))  # only the lease holds them now
    if end == "cancel":
        slow.holder.cancel(1, 1)
    elif end == "expire":
        slow.holder.turn(slow.now + 11.0)
    elif end == "lose the reader":
        slow.holder.reader_lost("fake://decode")
        slow.reader.holder_lost("fake://prefill")
    else:
        slow.reader.cancel(1, 1)
    slow.settle(10)
    assert slow.holding.held == 0
    assert slow.holder.turn(slow.now) == float("inf"), "nothing is left to digest"
    slow.nothing_stranded()


def test_an_end_while_pages_wait_to_be_checked_lets_them_go(slow: Ends) -> None:
    published_slowly(slow)
    slow.turn()
    slow.turn()
    slow.reader.cancel(1, 1)
    slow.settle(10)
    slow.nothing_stranded()
    assert not slow.complete() and not slow.reader.lost


def test_a_request_that_ends_with_its_first_token_waits_for_no_digest(ends: Ends) -> None:
    lease, pages = ends.prompt()
    ends.settle(3)
    ends.holder.publish(lease, pages, FirstTokens([0], [7], ["stop"], [None]))
    assert not ends.holder.leases
    ends.settle(5)
    events = {event for _, event in ends.reader.moves.counts}
    assert events == {Event.RESERVED, Event.NOTHING_LEFT} and not ends.plane.tickets
    ends.nothing_stranded()


def test_a_lost_publication_is_said_again_with_its_digests(ends: Ends) -> None:
    ends.publish_prompt()
    ends.holder.turn(ends.now)
    ends.holder_wire.sent.clear()  # lost
    ends.settle(20)
    assert not ends.complete()
    ends.turn(2.6)  # the reader's next Renew
    ends.completes()


def test_a_publication_without_digests_is_refused(ends: Ends) -> None:
    lease, pages = ends.publish_prompt()
    content = [ends.holding.content(page) for page in pages]
    word = Published(lease.id, 0, *pack(pages, [1] * 6, content), FIRST)
    ends.reader.take(ends.holder_wire.me, word, ends.now)
    assert ends.reader.refused_words == {Offence.BAD_LISTS.value: 1}


def test_checked_and_digests_go_together() -> None:
    pool = PagePool([0] * 4)
    with pytest.raises(ValueError, match="checked mode needs digests"):
        Holder(pool, Wire("a"), Ends().plane, COMPATIBILITY, 1.0, digests=Twice())


class Twice:
    """Digests that are easy to foresee."""

    page_bytes = BYTES_PER_TURN // 2

    def of(self, page: int) -> int:
        return 2 * page


def test_the_queue_keeps_to_its_budget_and_to_the_order_of_coming() -> None:
    queue: DigestQueue[str] = DigestQueue(Twice())
    queue.add("a", 0, [5, 6, 7])
    queue.add("b", 3, [8])
    queue.add("a", 3, [9])
    queue.add("c", 0, [])
    assert queue.turn() == [("a", 0, 10), ("a", 1, 12)]
    assert queue.turn() == [("a", 2, 14), ("a", 3, 18)]
    assert not queue.waits("a") and queue.waits("b") and not queue.waits("c")
    queue.drop("b")
    queue.drop("b")
    assert queue.turn() == [] and not queue.busy


def test_a_page_larger_than_the_budget_is_digested_all_the_same() -> None:
    queue: DigestQueue[str] = DigestQueue(Twice(), bytes_per_turn=1)
    queue.add("a", 0, [1, 2])
    assert queue.turn() == [("a", 0, 2)]


def test_device_memory_is_refused_with_what_would_work() -> None:
    memory = PageMemory("cuda:0", 0, 64, 4, 0)
    with pytest.raises(PlaneError, match="host memory only.*cuda:0.*kv_checked = false"):
        HostDigests(memory)
