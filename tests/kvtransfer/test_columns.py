"""Packed columns say what the lists they were made of say, in parts, repeated, few and many."""

import pytest
from msgspec import structs

from penstock.kvtransfer.columns import Columns, cut, pack
from penstock.kvtransfer.moves import Event
from penstock.protocol.messages import Published
from penstock.simulation.memory import SLOTS
from support.handover_ends import FIRST, Ends

HASHES = [bytes([number]) * 16 for number in range(5)]
PACKED = pack([9, 8, 7, 6, 5], [1, 2, 3, 4, 1 << 63], HASHES, [0, 1, 2, 3, (1 << 64) - 1])
MANY = list(range(100, 100 + 40 * SLOTS))  # enough blocks to be dealt with as arrays


def test_parts_add_up_whatever_was_said_twice() -> None:
    columns = Columns()
    columns.add(cut(PACKED, 0, 2))
    columns.add(cut(PACKED, 1, 4), first=1)
    columns.add(cut(PACKED, 2), first=2)
    assert (columns.count, columns.digests) == (5, 5)
    assert columns.part(0, 5) == PACKED and columns.part(1, 3) == cut(PACKED, 1, 3)
    assert columns.pages(1, 4).tolist() == [8, 7, 6]
    assert columns.generations(3, 5).tolist() == [4, 1 << 63]
    assert columns.hashes(2, 4) == b"".join(HASHES[2:4])
    assert columns.digest(4) == (1 << 64) - 1


def test_generations_are_compared_one_by_one() -> None:
    columns = Columns()
    columns.add(PACKED)
    assert columns.are_at((2, 3), 1, 3)
    for other in ((2, 4), (3, 2), (2,), (2, 3, 4), ()):
        assert not columns.are_at(other, 1, 3)


def test_what_was_handed_out_stays_while_more_is_said() -> None:
    """A plane keeps what it was given; a column that grows must not be held by it."""
    columns = Columns()
    columns.add(cut(PACKED, 0, 2))
    pages, generations = columns.pages(0, 2), columns.generations(0, 2)
    columns.add(cut(PACKED, 2))
    assert pages.tolist() == [9, 8] and generations.tolist() == [1, 2]


def test_digests_may_come_after_the_pages() -> None:
    columns = Columns()
    columns.add((*PACKED[:3], b""))
    assert (columns.count, columns.digests) == (5, 0)
    columns.add((b"", b"", b"", PACKED[3][:16]))
    assert columns.digests == 2
    assert columns.part(0, 2) == cut(PACKED, 0, 2)
    columns.add((b"", b"", b"", PACKED[3][16:]))
    assert columns.part(0, 5) == PACKED


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_a_prompt_of_many_blocks_is_handed_over(checked: bool) -> None:
    ends = Ends(checked)
    lease, pages = ends.prompt(tokens=MANY)
    ends.settle(3)
    ends.holder.publish(lease, pages[:33], None)
    ends.holder.publish(lease, pages[33:], FIRST)
    ends.settle()
    (incoming,) = ends.complete()
    assert ends.target.prefix(incoming.pages, len(MANY)) == MANY
    assert ends.reading.lookup(incoming.hashes) == incoming.pages
    ends.nothing_stranded()


BENT = {
    "a page below zero": (0, 4, -2, "page -2 is published"),
    "a page out of range": (0, 4, 1 << 20, "out of range"),
    "a generation never granted": (1, 8, 0, "never granted"),
    "another generation": (1, 8, 77, Event.STALE.value),
    "another block's content": (2, 16, 12345, "block 35 holds other content"),
}


@pytest.mark.parametrize("case", BENT)
def test_one_bent_block_among_many_ends_the_hand_over(case: str) -> None:
    column, width, value, said = BENT[case]
    ends = Ends()
    lease, pages = ends.prompt(tokens=MANY)
    ends.settle(3)
    ends.holder.publish(lease, pages, FIRST)
    (good,) = ends.holder_wire.take()
    names = ("pages", "generations", "hashes", "digests")
    columns = {name: bytearray(getattr(good, name)) for name in names}
    bent = columns[names[column]]
    bent[35 * width : 36 * width] = value.to_bytes(width, "little", signed=value < 0)
    assert isinstance(good, Published)
    word = structs.replace(good, **{name: bytes(one) for name, one in columns.items()})
    untouched = list(ends.target.tokens)
    ends.reader.take(ends.holder_wire.me, word, ends.now)
    ends.settle()
    ((_, reason),) = ends.lost()
    assert said in reason and list(ends.target.tokens) == untouched
    ends.nothing_stranded()
