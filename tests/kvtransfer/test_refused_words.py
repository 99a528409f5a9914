"""F6: stale and forged references are refused before a byte moves, counted, and said once."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from penstock.kvtransfer.columns import WIDTHS, pack, packed
from penstock.kvtransfer.moves import Event
from penstock.kvtransfer.words import MOST_RENEWED, Offence
from penstock.protocol.messages import (
    Agent,
    FirstTokens,
    Handoff,
    Introduce,
    LeaseEnded,
    Message,
    Peer,
    Published,
    Refused,
    Release,
    Renew,
)
from support.handover_ends import COMPATIBILITY, FIRST, PROMPT, Ends

COLUMNS = ("pages", "generations", "hashes", "digests")
REVERSED = (4, 3, 2, 1, 0, 5)
STRANGER = Peer("stranger", 9, "fake://stranger")


class Publication:
    """A good publication of PROMPT, on its way, and what each case makes of it."""

    def __init__(self) -> None:
        self.ends = Ends()
        lease, pages = self.ends.prompt()
        self.ends.settle()  # introduced: the way is open
        self.lease, self.pages = lease, pages
        self.ends.holder.publish(lease, pages, FIRST)
        (good,) = self.ends.holder_wire.take()
        assert isinstance(good, Published)
        self.good = good

    def say(self, **changes: object) -> None:
        message = structs.replace(self.good, **changes)
        self.ends.reader.take(self.ends.holder_wire.me, message, self.ends.now)
        self.ends.settle()


def swap(column: bytes, block: int, value: int | bytes) -> bytes:
    """A column of six blocks with another value for one of them."""
    width = len(column) // 6
    one = value if isinstance(value, bytes) else value.to_bytes(width, "little", signed=value < 0)
    return column[: block * width] + one.ljust(width, b"\0") + column[(block + 1) * width :]


def cut(good: Published, start: int, end: int) -> dict[str, Any]:
    """The columns of some of its blocks."""
    columns = zip(COLUMNS, packed(good), WIDTHS, strict=True)
    return {name: column[start * width : end * width] for name, column, width in columns}


def other_prompts_pages(one: Publication) -> dict[str, object]:
    pages = one.ends.compute("other", [token + 1 for token in PROMPT])
    return pages_of(one, pages)


def other_tenants_pages(one: Publication) -> dict[str, object]:
    return pages_of(one, one.ends.compute("other", PROMPT, salt="another tenant"))


def pages_of(one: Publication, pages: list[int]) -> dict[str, object]:
    pool = one.ends.holding
    columns = pack(pages, [*map(pool.generation, pages)], [*map(pool.content, pages)])
    return dict(zip(COLUMNS, columns, strict=True))


# What is said instead of the good publication, the reason counted, and what the sentence names.
CASES: dict[str, tuple[Callable[[Publication], dict[str, object]], Offence, str]] = {
    "another prompt's pages": (other_prompts_pages, Offence.WRONG_CONTENT, "block 0"),
    "another tenant's pages": (other_tenants_pages, Offence.WRONG_CONTENT, "tenant"),
    "one block of another prompt": (
        lambda one: {"hashes": swap(one.good.hashes, 3, b"x" * 16)},
        Offence.WRONG_CONTENT,
        "block 3 holds other content than this prompt",
    ),
    "blocks in another order": (
        lambda one: {"hashes": b"".join(cut(one.good, at, at + 1)["hashes"] for at in REVERSED)},
        Offence.WRONG_CONTENT,
        "block 0",
    ),
    "a full block without content": (
        lambda one: {"hashes": swap(one.good.hashes, 2, b"")},
        Offence.WRONG_CONTENT,
        "block 2",
    ),
    "a full block for the tail": (
        lambda one: {"hashes": swap(one.good.hashes, 5, b"x" * 16)},
        Offence.WRONG_CONTENT,
        "block 5",
    ),
    "a tail without content": (
        lambda one: {"hashes": swap(one.good.hashes, 5, b"")},
        Offence.WRONG_CONTENT,
        "block 5",
    ),
    "a page out of range": (
        lambda one: {"pages": swap(one.good.pages, 1, (1 << 31) - 1)},
        Offence.OUT_OF_RANGE,
        "range",
    ),
    "a page below zero": (
        lambda one: {"pages": swap(one.good.pages, 1, -1)},
        Offence.OUT_OF_RANGE,
        "page -1",
    ),
    "a block out of range": (lambda one: {"first_block": 1}, Offence.OUT_OF_RANGE, "1 to 7 of 6"),
    "a block below zero": (lambda one: {"first_block": -2}, Offence.OUT_OF_RANGE, "-2 to 4"),
    "a generation never granted": (
        lambda one: {"generations": swap(one.good.generations, 0, 0)},
        Offence.WRONG_GENERATION,
        "never granted",
    ),
    "too few generations": (
        lambda one: {"generations": one.good.generations[8:]},
        Offence.BAD_LISTS,
        "24 bytes of pages, 40 of generations",
    ),
    "half a page's number": (
        lambda one: {"pages": one.good.pages[:-2]},
        Offence.BAD_LISTS,
        "22 bytes of pages",
    ),
    "columns of half a block": (
        lambda one: {name: getattr(one.good, name)[:-1] for name in COLUMNS},
        Offence.BAD_LISTS,
        "23 bytes of pages",
    ),
    "too few hashes": (lambda one: {"hashes": b""}, Offence.BAD_LISTS, "0 of hashes"),
    "digests nobody asked for": (
        lambda one: {"digests": bytes(48)},
        Offence.BAD_LISTS,
        "6 digests",
    ),
    "too few digests": (lambda one: {"digests": bytes(40)}, Offence.BAD_LISTS, "40 of digests"),
    "first tokens of another length": (
        lambda one: {"first_tokens": FirstTokens([0], [7, 8], [""], [None])},
        Offence.BAD_LISTS,
        "different lengths",
    ),
    "first tokens before the end": (
        lambda one: cut(one.good, 0, 3),
        Offence.BAD_LISTS,
        "block 3 of 6",
    ),
    "a choice that was not asked for": (
        lambda one: {"first_tokens": FirstTokens([4], [7], [""], [None])},
        Offence.BAD_TOKENS,
        "choices",
    ),
    "a token outside the vocabulary": (
        lambda one: {"first_tokens": FirstTokens([0], [1 << 31], [""], [None])},
        Offence.BAD_TOKENS,
        "vocabulary",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_publication_that_cannot_be_is_refused_before_a_byte_moves(case: str) -> None:
    change, offence, said = CASES[case]
    one = Publication()
    untouched = list(one.ends.target.tokens)
    one.say(**change(one))
    ((event, reason),) = one.ends.lost()
    assert event == Event.REFUSED.name and said in reason
    assert one.ends.reader.refused_words == {offence.value: 1}
    assert one.ends.plane.tickets == 0 and list(one.ends.target.tokens) == untouched
    one.ends.nothing_stranded()  # the holder was told, too


def test_the_good_publication_is_read() -> None:
    one = Publication()
    one.say()
    (incoming,) = one.ends.complete()
    assert one.ends.target.prefix(incoming.pages, len(PROMPT)) == PROMPT
    assert not one.ends.reader.refused_words and not one.ends.holder.refused_words
    one.ends.nothing_stranded()


def test_an_old_generation_is_refused_before_a_byte_moves() -> None:
    """The lease is over, its pages hold another prompt, and the publication still travels."""
    one = Publication()
    untouched = list(one.ends.target.tokens)
    one.ends.holder.reader_lost("fake://decode")
    one.ends.holding.release(("sequence", 1))
    other = list(range(2000, 2000 + 64 * 4))  # takes every page again
    one.ends.compute("other", other)
    one.say()
    assert one.ends.lost() == [("STALE", Event.STALE.value)]
    assert list(one.ends.target.tokens) == untouched
    one.ends.nothing_stranded()


@pytest.mark.parametrize("field", ["pages", "generations", "hashes", "first_tokens"])
def test_a_repeat_that_differs_is_refused(field: str) -> None:
    one = Publication()
    one.ends.plane.hold = True
    one.say()
    one.say()  # said again, the same: fine
    assert not one.ends.reader.lost
    good = getattr(one.good, field)
    other = {
        "pages": lambda: swap(good, 5, 63),
        "generations": lambda: swap(good, 5, 99),
        "hashes": lambda: swap(good, 5, b"x"),
        "first_tokens": lambda: FirstTokens([0], [8], [""], [None]),
    }[field]()
    one.say(**{field: other})
    assert one.ends.reader.refused_words == {Offence.CONTRADICTION.value: 1}
    one.ends.plane.hold = False
    one.ends.settle()
    one.ends.nothing_stranded()


def test_a_partial_repeat_and_a_gap_are_no_offence() -> None:
    one = Publication()
    one.say(first_block=3, **cut(one.good, 3, 6))  # blocks 0..2 are lost
    assert not one.ends.complete() and not one.ends.lost()
    one.say(**cut(one.good, 0, 4), first_tokens=None)
    one.say(first_block=2, **cut(one.good, 2, 6))
    assert len(one.ends.complete()) == 1
    one.ends.nothing_stranded()


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("token", [-1, 1000, 1 << 40, (1 << 64) - 1])
def test_one_impossible_token_among_few_or_many_is_seen(token: int, count: int) -> None:
    ends = Ends(vocabulary=1000)
    prefill = structs.replace(ends.prompt()[0].prefill, token_ids=[5] * count + [token, 7])
    ends.reader.take(ends.holder_wire.me, Handoff(prefill, 5, 1.0, 0), ends.now)
    assert ends.lost() == [("REFUSED", "a token id lies outside the vocabulary of 1000")]
    assert ends.reader.refused_words == {Offence.BAD_TOKENS.value: 1}


def test_a_handoff_of_impossible_tokens_is_refused() -> None:
    ends = Ends(vocabulary=1000)
    lease, _ = ends.prompt(tokens=[1, 2, 1000])
    ends.settle()
    assert ends.lost() == [("REFUSED", "a token id lies outside the vocabulary of 1000")]
    prefill = structs.replace(lease.prefill, token_ids=[])
    ends.reader.take(ends.holder_wire.me, Handoff(prefill, 5, 1.0, 0), ends.now)
    ends.settle()
    assert ends.lost()[1:] == [("REFUSED", "a hand-over without tokens or choices")]
    ends.nothing_stranded()


# --- words of those who have no part in it -----------------------------------------------------

AGENT = Agent(COMPATIBILITY, b"fake://stranger 0")


@pytest.mark.parametrize(
    "message, offence",
    [
        (lambda good: good, Offence.FOREIGN_LEASE),
        (lambda good: LeaseEnded(good.lease, "forged"), Offence.FOREIGN_LEASE),
        (lambda good: AGENT, Offence.NOT_ASKED),
        (lambda good: Refused("forged"), Offence.NOT_ASKED),
    ],
    ids=["published", "lease ended", "agent", "refused"],
)
def test_the_reader_takes_no_word_of_a_stranger(
    message: Callable[[Published], Message], offence: Offence
) -> None:
    one = Publication()
    one.ends.reader.take(STRANGER, message(one.good), one.ends.now)  # type: ignore[arg-type]
    assert one.ends.reader.refused_words == {offence.value: 1}
    dead = structs.replace(one.ends.holder_wire.me, incarnation=0)
    one.ends.reader.take(dead, message(one.good), one.ends.now)  # type: ignore[arg-type]
    assert one.ends.reader.refused_words[Offence.PAST_INCARNATION.value] == 1
    one.say()
    assert len(one.ends.complete()) == 1, "the hand-over goes on"
    one.ends.nothing_stranded()


def test_the_holder_takes_no_word_of_a_stranger() -> None:
    one = Publication()
    holder, lease = one.ends.holder, one.lease
    holder.take(one.ends.reader_wire.me, Renew([lease.id], [6]), one.ends.now)
    expires = lease.expires
    one.ends.now += 5.0
    for word in (Release(lease.id), Renew([lease.id], [0])):
        holder.take(STRANGER, word, one.ends.now)
    reborn = structs.replace(one.ends.reader_wire.me, incarnation=7)
    for word in (Release(lease.id), Renew([lease.id], [0])):
        holder.take(reborn, word, one.ends.now)
    assert lease.id in holder.leases and lease.expires == expires
    assert holder.refused_words == {
        Offence.FOREIGN_LEASE.value: 2,
        Offence.PAST_INCARNATION.value: 2,
    }
    # Nobody but its reader hears what the lease holds.
    said = one.ends.holder_wire.sent
    assert all(isinstance(word, LeaseEnded) for to, word in said if to == STRANGER.endpoint)


def test_leases_never_given_out_and_bad_lists_are_refused() -> None:
    one = Publication()
    holder, reader, lease = one.ends.holder, one.ends.reader_wire.me, one.lease
    words = [
        Release(lease.id + 1),
        Release(-1),
        Renew([lease.id], []),
        Renew([lease.id], [-1]),
        Renew([lease.id] * (MOST_RENEWED + 1), [0] * (MOST_RENEWED + 1)),
    ]
    expires = lease.expires
    one.ends.holder_wire.sent.clear()
    for word in words:
        holder.take(reader, word, 5.0)
    assert holder.refused_words == {
        Offence.NO_SUCH_LEASE.value: 2,
        Offence.BAD_LISTS.value: 2,
        Offence.OUT_OF_RANGE.value: 1,
    }
    assert lease.expires == expires and not one.ends.holder_wire.sent
    holder.take(reader, Renew([lease.id] * 99, [0] * 99), 5.0)
    assert len(one.ends.holder_wire.sent) == 1, "a lease named often is answered once"


def test_a_word_for_a_lease_that_has_ended_is_no_offence() -> None:
    one = Publication()
    reader = one.ends.reader_wire.me
    one.ends.holder.take(reader, Release(one.lease.id), 0.0)
    one.ends.holder.take(reader, Release(one.lease.id), 0.0)
    one.ends.holder.take(reader, Renew([one.lease.id], [0]), 0.0)
    assert not one.ends.holder.refused_words


def test_each_peer_and_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    one = Publication()
    holder = one.ends.holder
    with caplog.at_level(logging.WARNING, "penstock.handover"):
        for _ in range(5):
            holder.take(STRANGER, Release(one.lease.id), 0.0)
            holder.take(structs.replace(STRANGER, endpoint="fake://x"), Release(one.lease.id), 0.0)
            holder.take(STRANGER, Release(1), 0.0)
    assert len(caplog.records) == 3
    assert "stranger at fake://stranger" in caplog.text
    assert sum(holder.refused_words.values()) == 15


def test_an_introduction_that_does_not_fit_is_counted_and_gets_nothing() -> None:
    one = Publication()
    other = structs.replace(COMPATIBILITY, dtype="fp4")
    one.ends.holder.take(STRANGER, Introduce(other), 0.0)
    ((to, word),) = one.ends.holder_wire.sent
    assert to == STRANGER.endpoint and isinstance(word, Refused)
    assert word.reason == "dtype differs: holder has 'int32', reader has 'fp4'"
    assert one.ends.holder.refused_words == {Offence.MISFIT.value: 1}


@pytest.mark.parametrize("word", [AGENT, Refused("other model"), LeaseEnded(5, "no such lease")])
def test_any_word_of_a_later_incarnation_ends_what_the_dead_one_handed_over(word: Message) -> None:
    """A hand-over read after its holder's link broke has no other end: nobody answers for it."""
    one = Publication()
    reborn = structs.replace(one.ends.holder_wire.me, incarnation=8)
    one.ends.reader.take(reborn, word, one.ends.now)  # type: ignore[arg-type]
    assert [event for event, _ in one.ends.lost()] == ["PEER_LOST"]
    assert one.ends.reading.held == 0
