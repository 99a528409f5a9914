"""Small scattered pages over NIXL: packed by the holder, unpacked by the reader, whatever fails."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)

from penstock.kvtransfer import nixl_gather, nixl_serving  # noqa: E402
from penstock.kvtransfer.nixl_staging import SLOTS, pieces_worth_gathering  # noqa: E402
from penstock.kvtransfer.nixl_words import (  # noqa: E402
    MOST_PAGES_PER_ASK,
    Ask,
    Done,
    Ready,
    Refused,
    encode,
)
from penstock.kvtransfer.plane import STALE, PlaneError  # noqa: E402
from support.nixl_pair import End, Pair  # noqa: E402
from support.plane_world import PAGE_COUNT, World, until  # noqa: E402


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    opened: list[Pair] = []
    yield opened
    for pair in opened:
        pair.close()


def scattered(page_count: int, size: int, seed: int = 0) -> tuple[list[int], list[int]]:
    chance = random.Random(seed)
    return chance.sample(range(page_count), size), chance.sample(range(page_count), size)


@pytest.mark.parametrize(
    ("page_bytes", "page_count", "size"),
    [
        (16, 70_000, 40_000),
        (200, 9000, 6000),
        (256, 9000, 9000),
        (4096, 2000, 700),
        (12288, 600, 600),
    ],
)
def test_gathered_pages_are_those_asked_for(
    pairs: list[Pair], page_bytes: int, page_count: int, size: int
) -> None:
    pairs.append(pair := Pair(page_bytes, page_count))
    remote, local = scattered(page_count, size)
    pair.holder.memory.generations[remote[5]] = 9
    expected = [9 if at == 5 else 0 for at in range(size)]
    completion = pair.read(remote, local, expected)
    assert completion.failed == "" and completion.quiet
    assert completion.generations == tuple(expected)
    assert pair.same(remote, local)
    assert pair.reader.plane.gathered == size
    assert "gathered by the holder" in pair.reader.plane.path
    assert not pair.reader.plane.busy
    pair.until(lambda: not pair.holder.plane.busy, "the return of the holder's slots")


def test_few_pages_long_runs_and_large_pages_are_read_directly(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(4096, 900))
    assert pair.read([5, 99, 7], [1, 2, 3]).failed == ""
    assert pair.read(list(range(900)), list(range(900))).failed == ""
    assert pair.reader.plane.gathered == 0
    pairs.append(large := Pair(16 << 10, 400))
    assert large.read(*scattered(400, 300)).failed == ""
    assert large.reader.plane.gathered == 0 and "16 KB or more" in large.reader.plane.path


@pytest.mark.parametrize("page_bytes", [256, 4096, 8192])
def test_as_many_pieces_are_gathered_as_the_path_says(pairs: list[Pair], page_bytes: int) -> None:
    pairs.append(pair := Pair(page_bytes, 2000))
    path = pair.reader.plane.path
    enough = int(path.rpartition("; ")[2].split()[0])
    remote = list(range(0, 2 * enough, 2))
    assert pair.read(remote[1:], remote[1:]).failed == ""
    assert pair.reader.plane.gathered == 0
    assert pair.read(remote, remote).failed == ""
    assert pair.reader.plane.gathered == enough


def test_larger_pieces_are_worth_gathering_later_and_the_largest_never() -> None:
    enough = [pieces_worth_gathering(size) for size in (16, 256, 4096, 8192, 12288)]
    assert enough == sorted(enough)
    assert pieces_worth_gathering(32 << 10) > 1 << 30


def test_stale_pages_are_refused_before_they_are_asked_for(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(1024, 4000))
    remote, local = scattered(4000, 2000)
    expected = [0] * 2000
    expected[1234] = 1
    completion = pair.read(remote, local, expected)
    assert completion.failed == STALE and completion.quiet
    assert pair.reader.poisoned and pair.reader.plane.gathered == 0


def words_of(end: End) -> Any:
    return msgspec.msgpack.decode(end.plane.metadata())


def test_what_is_no_ask_is_counted_and_dropped(pairs: list[Pair]) -> None:
    """Garbage, a forged token, an agent that is not the sender's, an answer to nothing."""
    pairs.append(pair := Pair(1024, 100, readers=2))
    holder, reader, other = pair.holder, *pair.readers
    agent, token = reader.plane._agent, holder.plane._token
    nixl = words_of(reader)[-1]
    pages = bytes(4)
    bad = [
        b"",
        b"\xff" * 100,
        encode(("ask", 1)),
        bytes(70_000),
        encode(Ask(b"forged..", 1, pages, nixl)),
        encode(Ask(token, 1, pages, b"no metadata")),
        encode(Ask(token, 1, pages, words_of(other)[-1])),
        encode(Done(b"forged..", [1])),
        encode(Ready(77, 0, 1)),
        encode(Refused(78, "no")),
    ]
    for count, notification in enumerate(bad, start=1):
        agent.send_notif(holder.name, notification)
        pair.until(lambda n=count: holder.plane.refused == n, f"the refusal of {notification[:20]}")
    assert not holder.plane.busy
    remote, local = scattered(100, 90)
    assert pair.read(remote, local).failed == "" and pair.same(remote, local)


@pytest.mark.parametrize(
    "pages",
    [b"", b"\1\0\0", (100).to_bytes(4, "little"), b"\xff" * 4, bytes(4 * (MOST_PAGES_PER_ASK + 1))],
    ids=["none", "cut", "behind", "negative", "too-many"],
)
def test_an_ask_for_what_is_not_there_is_answered(pairs: list[Pair], pages: bytes) -> None:
    pairs.append(pair := Pair(1024, 100))
    heard: list[object] = []
    pair.reader.plane._gather.answered = lambda sender, words: heard.append(words)  # type: ignore
    ask = Ask(pair.holder.plane._token, 5, pages, words_of(pair.reader)[-1])
    pair.reader.plane._agent.send_notif(pair.holder.name, encode(ask))
    pair.until(lambda: bool(heard), "an answer")
    assert isinstance(heard[0], Refused) and heard[0].number == 5
    assert pair.holder.plane.refused == 1 and not pair.holder.plane.busy


def test_a_refused_or_silent_holder_is_read_by_piece_and_the_path_says_so(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_gather, "PATIENCE_SECONDS", 0.05)
    pairs.append(pair := Pair(1024, 4000))
    remote, local = scattered(4000, 2000)
    monkeypatch.setattr(nixl_serving.Serving, "pack_next", lambda self: False)
    completion = pair.read(remote, local, [0] * 2000)
    assert completion.failed == "" and pair.same(remote, local)
    assert "by piece from some peers: no answer" in pair.reader.plane.path
    assert pair.reader.plane.gathered == 0
    monkeypatch.undo()
    monkeypatch.setattr(nixl_gather, "AGAIN_SECONDS", 0.0)
    assert pair.read(remote, local).failed == ""
    assert pair.reader.plane.gathered == 2000 and "some peers" not in pair.reader.plane.path
    monkeypatch.setattr(nixl_serving, "ASKED_PER_READER", 0)
    assert pair.read(remote, local).failed == ""
    assert "too many asks" in pair.reader.plane.path


@pytest.mark.parametrize("pages", [400, 1400], ids=["a slotful", "slotfuls"])
def test_a_slot_taken_back_before_it_was_read_is_noticed(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """The first reader's slots are packed again for the second one before the first has looked."""
    pairs.append(pair := Pair(1024, 4000, readers=2))
    slow, fast = pair.readers
    for reader in pair.readers:  # connected, so that nothing below needs the slow one's progress
        assert pair.settle(reader.plane.read("holder", [0], [0]), reader).failed == ""
        reader.plane.read("holder", *scattered(4000, pages))
    pair.until(lambda: not any(end.plane.busy for end in (*pair.readers, pair.holder)), "the end")
    monkeypatch.setattr(nixl_serving, "SLOT_SECONDS", 0.0)
    plans = [scattered(4000, pages, seed) for seed in (1, 2)]
    for reader in pair.readers:
        reader.poison()
    serving = pair.holder.plane._serving
    assert serving

    def packed() -> int:
        return int(serving._sequences.words.sum())

    before = packed()
    first = slow.plane.read("holder", *plans[0])
    slow.step()  # asks
    until(lambda: packed() > before, pair.holder.step, "the first ask")
    second = fast.plane.read("holder", *plans[1])

    def step() -> None:
        fast.step()
        pair.holder.step()

    until(lambda: bool(fast.of(second)), step, "the second read")
    before = packed()
    for reader, ticket, plan in zip(pair.readers, (first, second), plans, strict=True):
        assert pair.settle(ticket, reader).failed == ""
        assert pair.same(*plan, reader=reader)
    assert packed() > before  # the first one asked again


@pytest.mark.parametrize("removed", [False, True], ids=["abandoned", "removed"])
def test_pages_are_quiet_the_moment_a_gathered_read_is_given_up(
    pairs: list[Pair], removed: bool
) -> None:
    pairs.append(pair := Pair(1024, 8000))
    for turns in range(12):
        ticket = pair.reader.plane.read("holder", *scattered(8000, 6000, turns))
        for _ in range(turns):
            pair.step()
        if pair.reader.of(ticket):
            continue
        if removed:
            pair.reader.plane.remove_peer("holder")
        else:
            pair.reader.plane.abandon(ticket)
        assert pair.reader.plane.quiet(ticket)
        pair.reader.poison()
        assert pair.settle(ticket).failed != ""
        pair.until(lambda: not pair.reader.plane.busy, "the end of what was on its way")
        pair.until(lambda: not pair.holder.plane.busy, "the return of the holder's slots")
        assert pair.reader.poisoned and len(pair.reader.of(ticket)) == 1
        pair.reader.plane.add_peer("holder", 1, pair.holder.plane.metadata())
    pair.reader.poison()
    remote, local = scattered(8000, 6000)
    assert pair.read(remote, local).failed == "" and pair.same(remote, local)


def test_a_reader_that_stands_still_keeps_no_slot_from_others(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_serving, "SLOT_SECONDS", 0.3)
    pairs.append(pair := Pair(1024, 8000, readers=2))
    still, alive = pair.readers
    still.plane.read("holder", *scattered(8000, 6000))
    for _ in range(3):
        still.step()
    pair.until = until_without(pair, still)  # type: ignore[method-assign]
    plan = scattered(8000, 6000, 1)
    ticket = alive.plane.read("holder", *plan)
    assert pair.settle(ticket, alive).failed == "" and pair.same(*plan, reader=alive)
    assert alive.plane.gathered == 6000
    pair.until(lambda: not pair.holder.plane.busy, "the return of the still reader's slots")


def until_without(pair: Pair, still: End) -> Any:
    def wait(condition: Any, what: str) -> None:
        def step() -> None:
            for end in (pair.holder, *pair.readers):
                if end is not still:
                    end.step()

        until(condition, step, what)

    return wait


READER = """
import sys
from penstock.kvtransfer import nixl_gather
from support.nixl_pair import End
nixl_gather.PATIENCE_SECONDS = 60.0  # this test's holder may get no processor for seconds
end = End(1024, 8000)
end.plane.add_peer("holder", 1, bytes.fromhex(sys.argv[1]))
print("up", flush=True)
while True:
    pages = list(range(0, 8000, 2))
    ticket = end.plane.read("holder", pages, pages)
    while not end.of(ticket):
        end.step()
"""


@pytest.fixture
def holder() -> Iterator[End]:
    holder = End(1024, 8000)
    holder.fill(1)
    yield holder
    holder.close()


def test_a_reader_killed_at_any_moment_leaves_nothing_with_the_holder(
    holder: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_serving, "SLOT_SECONDS", 0.2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for round_ in range(3):
        command = [sys.executable, "-c", READER, holder.plane.metadata().hex()]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as reader:
            try:
                assert reader.stdout and reader.stdout.readline() == b"up\n"
                until(lambda: holder.plane.busy, holder.step, "an ask")
                for _ in range(50 * round_):
                    holder.step()
            finally:
                reader.kill()
        until(lambda: not holder.plane.busy, holder.step, "the return of the dead reader's slots")
        assert holder.plane._serving and len(holder.plane._serving._free) == SLOTS


@pytest.fixture
def world() -> Iterator[World]:
    world = World("nixl", bytes_per_post=4 << 20)
    yield world
    world.close()


def test_a_holder_killed_while_it_packs(world: World) -> None:
    pages = list(range(0, PAGE_COUNT, 2))
    for turn in range(3):
        peer, endpoint = world.peer(), f"tcp://peer:{turn}"
        world.plane.add_peer(endpoint, 1, peer.metadata())
        assert world.read(endpoint, pages, pages).failed == ""
        assert world.local(pages[-1]) == peer.expected(pages[-1])
        ticket = world.plane.read(endpoint, pages, pages)
        for _ in range(turn):
            world.pump()
        assert not world.of(ticket)
        peer.kill()
        assert world.settle(ticket).failed != ""
        until(lambda: not world.plane.busy, world.pump, "the end of what was on its way")
        with pytest.raises(PlaneError):
            while True:
                assert world.read(endpoint, pages, pages).failed != ""


def test_a_stopped_holder_keeps_no_page_of_an_abandoned_gather(world: World) -> None:
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    pages = list(range(0, PAGE_COUNT, 2))
    assert world.read("tcp://peer:1", pages, pages).failed == ""
    peer.signal(signal.SIGSTOP)
    ticket = world.plane.read("tcp://peer:1", pages, pages)
    for _ in range(5):
        world.pump()
    world.plane.abandon(ticket)
    assert world.plane.quiet(ticket) and world.settle(ticket).failed != ""
    world.poison()
    peer.signal(signal.SIGCONT)
    until(lambda: not world.plane.busy, world.pump, "the end of what was on its way")
    for _ in range(200):
        world.pump()
    assert world.poisoned(list(range(PAGE_COUNT)))
    assert world.read("tcp://peer:1", pages, pages).failed == ""
