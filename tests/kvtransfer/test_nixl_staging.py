"""A holder's staging slots: no reader takes the others' share, whatever it leaves undone."""

import importlib.util
import random
from collections.abc import Iterator

import msgspec
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)

from penstock.kvtransfer import nixl_serving  # noqa: E402
from penstock.kvtransfer.nixl_serving import SLOTS_PER_READER  # noqa: E402
from penstock.kvtransfer.nixl_staging import SLOTS  # noqa: E402
from penstock.kvtransfer.nixl_words import Ask, Done, Ready, encode  # noqa: E402
from support.nixl_pair import Pair  # noqa: E402

PAGE_BYTES = 1024
PAGE_COUNT = 4000
ONE_PAGE = (7).to_bytes(4, "little")


class Hoarder:
    """A reader that asks for pages, a slot each, and never says that it is done."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._plane = pair.readers[1].plane
        self.ready: list[Ready] = []
        self._plane._gather.answered = lambda sender, words: self.ready.append(words)  # type: ignore

    def ask(self, numbers: range) -> None:
        token = self._pair.holder.plane._token
        nixl = msgspec.msgpack.decode(self._plane.metadata())[-1]
        for number in numbers:
            self._say(Ask(token, number, ONE_PAGE, nixl))

    def done(self, number: int) -> None:
        self._say(Done(self._pair.holder.plane._token, [number]))

    def _say(self, words: Ask | Done) -> None:
        self._plane._agent.send_notif(self._pair.holder.name, encode(words))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(nixl_serving, "SLOT_SECONDS", 3600.0)  # none comes back by itself
    pair = Pair(PAGE_BYTES, PAGE_COUNT, readers=2)
    yield pair
    pair.close()


def waiting(pair: Pair) -> int:
    serving = pair.holder.plane._serving
    assert serving is not None
    return len(serving._asked)


def test_a_reader_that_gives_no_slot_back_has_its_share_and_no_more(pair: Pair) -> None:
    assert SLOTS_PER_READER < SLOTS
    hoarder, most = Hoarder(pair), SLOTS_PER_READER
    hoarder.ask(range(1, most + 4))
    pair.until(lambda: len(hoarder.ready) == most and waiting(pair) == 3, "its share, and a queue")
    for _ in range(50):
        pair.step()
    assert [words.number for words in hoarder.ready] == list(range(1, most + 1))
    assert len({words.slot for words in hoarder.ready}) == most
    assert waiting(pair) == 3
    # Another reader is served past its queue, from the slots that are left.
    chance = random.Random(1)
    remote, local = (chance.sample(range(PAGE_COUNT), 3000) for _ in range(2))
    assert pair.read(remote, local).failed == "" and pair.same(remote, local)
    assert pair.reader.plane.gathered == 3000, "not by piece"
    # A slot that comes back goes to what waits.
    hoarder.done(2)
    pair.until(lambda: len(hoarder.ready) == most + 1, "the next of the queue")
    assert hoarder.ready[-1].number == most + 1
    assert hoarder.ready[-1].slot == hoarder.ready[1].slot
    assert waiting(pair) == 2


def test_what_a_reader_was_given_comes_back_when_its_time_is_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hoarder, most = Hoarder(pair), SLOTS_PER_READER
    hoarder.ask(range(1, 2 * most + 1))
    pair.until(lambda: len(hoarder.ready) == most, "its share")
    monkeypatch.setattr(nixl_serving, "SLOT_SECONDS", 0.0)
    pair.until(lambda: len(hoarder.ready) == 2 * most, "the rest")
    pair.until(lambda: not pair.holder.plane.busy, "the return of all slots")
    raised = {words.slot: words.sequence for words in hoarder.ready}
    assert max(raised.values()) > 1, "who was slower is told by the sequence"
