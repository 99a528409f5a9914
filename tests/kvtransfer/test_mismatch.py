"""F12: workers that do not fit say so at the handshake, with the field and both values."""

import time
from collections.abc import Iterator

import pytest
from msgspec import structs

from penstock.kvtransfer.holder import Holder
from penstock.kvtransfer.incoming import Allowance, ReaderSettings
from penstock.kvtransfer.moves import Event
from penstock.kvtransfer.reader import Reader
from penstock.kvtransfer.words import Offence, mismatch
from penstock.protocol.messages import Agent, Compatibility, Introduce, Prefill, Sampling
from penstock.protocol.pages import PagePool
from penstock.protocol.seams import Received
from penstock.protocol.sockets import Mailbox
from penstock.simulation.memory import PAGE_BYTES, SLOTS, Memory
from penstock.simulation.plane import SimulatedPlane
from support.handover_ends import COMPATIBILITY, FIRST, PROMPT, ROUTER, Ends

OTHER = {
    "revision": 1,
    "model": "another model",
    "numeric_class": "another class",
    "dtype": "fp4",
    "layout": "PLCGSH 6x2x2x16x64",
    "page_bytes": 4096,
    "plane": "zmq",
    "checked": True,
}


def test_every_field_is_in_the_matrix() -> None:
    assert tuple(OTHER) == Compatibility.__struct_fields__


@pytest.mark.parametrize("field", OTHER)
def test_a_holder_that_differs_is_refused_by_name_before_a_byte_moves(field: str) -> None:
    holds = structs.replace(COMPATIBILITY, **{field: OTHER[field]})
    ends = Ends(holds=holds)
    lease, pages = ends.prompt()
    ends.holder.publish(lease, pages, FIRST)
    ends.settle(5)
    mine = getattr(COMPATIBILITY, field)
    sentence = f"{field} differs: holder has {OTHER[field]!r}, reader has {mine!r}"
    assert ends.lost() == [(Event.REFUSED.name, sentence)]
    assert ends.plane.tickets == 0 and not ends.plane.peers
    assert ends.holder.refused_words[Offence.MISFIT.value] == 1
    ends.holding.release(("sequence", 1))
    ends.nothing_stranded()
    # It may have started anew with what fits, so the next hand-over asks again.
    ends.prompt(2)
    assert any(isinstance(one, Introduce) for one in ends.settle(3))
    assert ends.lost()[1:] == [(Event.REFUSED.name, sentence)]


@pytest.mark.parametrize("field", OTHER)
def test_a_reader_believes_no_holder_that_differs(field: str) -> None:
    """The holder's own check is not relied on: its answer is compared, too."""
    ends = Ends()
    ends.prompt()
    for message in ends.holder_wire.take():
        ends.reader.take(ends.holder_wire.me, message, 0.0)  # type: ignore[arg-type]
    theirs = structs.replace(COMPATIBILITY, **{field: OTHER[field]})
    answer = Agent(theirs, ends.holder_plane.metadata())
    ends.reader.take(ends.holder_wire.me, answer, 0.0)
    ((event, reason),) = ends.lost()
    assert event == Event.REFUSED.name and reason == mismatch(theirs, COMPATIBILITY)
    assert reason.startswith(f"{field} differs") and not ends.plane.peers


def test_a_holder_that_starts_again_and_fits_is_read() -> None:
    ends = Ends(holds=structs.replace(COMPATIBILITY, model="old"))
    ends.prompt()
    ends.settle(3)
    assert ends.lost()
    ends.reader.holder_lost("fake://prefill")
    fitting = Ends()
    lease, pages = fitting.prompt(2)
    fitting.reader, fitting.reading, fitting.plane = ends.reader, ends.reading, ends.plane
    fitting.target, fitting.reader_wire = ends.target, ends.reader_wire
    ends.plane.everyone.update(fitting.holder_plane.everyone)
    fitting.holder_wire.me = structs.replace(fitting.holder_wire.me, incarnation=2)
    fitting.holder.publish(lease, pages, FIRST)
    fitting.settle(5)
    assert len(ends.complete()) == 1


# --- over two real mailboxes --------------------------------------------------------------------


@pytest.fixture
def mailboxes() -> Iterator[tuple[Mailbox, Mailbox]]:
    opened = Mailbox("prefill"), Mailbox("decode")
    yield opened
    for mailbox in opened:
        mailbox.close()


def test_the_field_is_named_across_real_mailboxes(mailboxes: tuple[Mailbox, Mailbox]) -> None:
    source, target = mailboxes
    everyone: dict[str, SimulatedPlane] = {}
    memories = Memory(16), Memory(16)
    pools = [PagePool(memory.generations) for memory in memories]
    planes = [
        SimulatedPlane(memory, mailbox.me.endpoint, everyone)
        for memory, mailbox in zip(memories, mailboxes, strict=True)
    ]
    other = structs.replace(COMPATIBILITY, layout="PLCGSH 1x1x1x1x1")
    holder = Holder(pools[0], source, planes[0], other, 10.0)
    settings = ReaderSettings(SLOTS, PAGE_BYTES)
    reader = Reader(pools[1], target, planes[1], COMPATIBILITY, settings)
    prefill = Prefill(
        *(1, 1, ROUTER, "m", "", PROMPT, len(PROMPT), [0], Sampling(1), target.me.endpoint)
    )
    holder.open(prefill, 0, 0.0)
    give_up = time.monotonic() + 20.0
    while not reader.lost or holder.leases:
        for mailbox, taker in ((source, holder), (target, reader)):
            mailbox.wait(0.01)
            for arrival in mailbox.receive():
                if isinstance(arrival, Received):
                    taker.take(arrival.sender, arrival.message, 0.0)  # type: ignore[arg-type]
        reader.turn(Allowance(8), 0.0)
        assert time.monotonic() < give_up
    (lost,) = reader.lost
    said = "layout differs: holder has 'PLCGSH 1x1x1x1x1', reader has 'layout'"
    assert (lost.event, lost.reason) == (Event.REFUSED, said)
    assert [lease.ended_by for lease in holder.ended] == [Event.REFUSED]
