"""Any words in any order: none brings a holder or a reader down, and nothing is stranded."""

import random
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from penstock.kvtransfer.incoming import Allowance
from penstock.protocol import codec
from penstock.protocol.messages import (
    Agent,
    FirstTokens,
    Handoff,
    Introduce,
    LeaseEnded,
    Peer,
    Prefill,
    Published,
    Refused,
    Release,
    Renew,
    Sampling,
)
from support.handover_ends import COMPATIBILITY, FIRST, PROMPT, ROUTER, Ends

STEPS = 250
TO_READER = (Handoff, Published, Agent, Refused, LeaseEnded)
TO_HOLDER = (Introduce, Renew, Release)
NUMBERS = (-(1 << 63), -1, 0, 1, 2, 5, 6, 63, 64, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


class Nonsense:
    """Messages of the right types and of any content, near to and far from the truth."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.heard: list[Any] = []  # true words, to be repeated and bent
        self.leases: list[int] = [1]

    def number(self) -> int:
        if self.chance.random() < 0.4:
            return self.chance.choice(self.leases)
        return self.chance.choice(NUMBERS) if self.chance.random() < 0.5 else self.small()

    def small(self) -> int:
        return self.chance.randrange(8)

    def value(self, kind: Any) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if arguments and origin in (list, tuple):
            return origin([self.value(arguments[0]) for _ in range(self.small())])
        if origin is dict:
            return {}
        if arguments:  # a union with None, or a Literal
            one = self.chance.choice(arguments)
            return one if isinstance(one, str) else self.value(one)
        if kind is type(None):
            return None
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            hints = get_type_hints(kind)
            return kind(**{name: self.value(hints[name]) for name in kind.__struct_fields__})
        drawn = {
            int: self.number,
            float: lambda: self.chance.choice((0.0, -1.0, 1e300)),
            str: lambda: self.chance.choice(("", "x", "fake://decode", "fake://prefill")),
            bytes: lambda: self.chance.choice((b"", b"x" * 16, b"fake://prefill 0")),
            bool: lambda: self.chance.random() < 0.5,
        }
        return drawn[kind]()

    def word(self, kinds: tuple[type, ...]) -> Any:
        true = [one for one in self.heard if isinstance(one, kinds)]
        draw = self.chance.random()
        if true and draw < 0.25:
            return self.chance.choice(true)
        if true and draw < 0.6:
            return self.bent(self.chance.choice(true))
        return codec.decode(codec.encode(self.value(self.chance.choice(kinds))))

    def bent(self, message: Any) -> Any:
        """A true word with one field changed."""
        name = self.chance.choice(message.__struct_fields__)
        changed = self.value(get_type_hints(type(message))[name])
        return msgspec.structs.replace(message, **{name: changed})

    def sender(self, true: Peer) -> Peer:
        if self.chance.random() < 0.7:
            return true
        bend = self.chance.choice(({"incarnation": 2}, {"endpoint": "fake://x"}, {"name": "y"}))
        return msgspec.structs.replace(true, **bend)


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("seed", range(60))
def test_any_words_in_any_order(seed: int, checked: bool) -> None:
    nonsense, ends = Nonsense(seed), Ends(checked)
    chance = nonsense.chance
    for step in range(STEPS):
        draw = chance.random()
        if draw < 0.1:
            begin(ends, nonsense, request=step)
        elif draw < 0.4:
            word = nonsense.word(TO_READER)
            ends.reader.take(nonsense.sender(ends.holder_wire.me), word, ends.now)
        elif draw < 0.6:
            word = nonsense.word(TO_HOLDER)
            ends.holder.take(nonsense.sender(ends.reader_wire.me), word, ends.now)
        elif draw < 0.65:
            ends.holder.cancel(chance.randrange(step + 1), 1)
            ends.reader.cancel(chance.randrange(step + 1), 1)
        elif draw < 0.67:
            ends.reader.holder_lost("fake://prefill")
        elif draw < 0.69:
            ends.holder.reader_lost("fake://decode")
        else:
            turn(ends, nonsense)
        ends.plane.hold = chance.random() < 0.3
        ends.holding.check()
        ends.reading.check()
    finish(ends)


def begin(ends: Ends, nonsense: Nonsense, request: int) -> None:
    prefill = Prefill(
        request, 1, ROUTER, "m", "", PROMPT, len(PROMPT), [0], Sampling(1), "fake://decode"
    )
    if not ends.holding.can_take(6, []):
        return
    lease = ends.holder.open(prefill, 0, ends.now)
    nonsense.leases.append(lease.id)
    pages = ends.compute(("sequence", request), PROMPT)
    last = FirstTokens([0], [7], ["stop"], [None]) if nonsense.chance.random() < 0.1 else FIRST
    ends.holder.publish(lease, pages[:3], None)
    ends.holder.publish(lease, pages[3:], last)
    ends.holding.release(("sequence", request))


def turn(ends: Ends, nonsense: Nonsense) -> None:
    """Both ends' turns; some of what they say is lost, all of it is remembered."""
    ends.now += nonsense.chance.choice((0.01, 0.01, 0.5, 3.0))
    ends.holder.turn(ends.now)
    ends.reader.turn(Allowance(8), ends.now)
    for wire, taker, me in (
        (ends.holder_wire, ends.reader, ends.holder_wire.me),
        (ends.reader_wire, ends.holder, ends.reader_wire.me),
    ):
        said = [message for to, message in wire.sent if to in ("fake://decode", "fake://prefill")]
        wire.sent.clear()
        nonsense.heard = (nonsense.heard + said)[-60:]
        for message in said:
            if nonsense.chance.random() < 0.8:
                taker.take(me, message, ends.now)  # type: ignore[arg-type]
    ends.holder.ended.clear()
    ends.reader.lost.clear()
    for incoming in ends.reader.complete:
        held = ends.target.prefix(incoming.pages, len(incoming.handoff.prefill.token_ids))
        assert held == incoming.handoff.prefill.token_ids, "wrong content was taken over"
        ends.reading.release(incoming.pool_holder)
    ends.reader.complete.clear()


def finish(ends: Ends) -> None:
    """Left alone, every lease and every hand-over ends by itself."""
    ends.plane.hold = False
    for endpoint in ("fake://prefill", "fake://x"):
        ends.reader.holder_lost(endpoint)
    ends.now += 1000.0
    for _ in range(5):
        ends.holder.turn(ends.now)
        ends.reader.turn(Allowance(8), ends.now)
    ends.nothing_stranded()
    assert ends.holding.held == 0 and not ends.reader.open_reads
    assert ends.compatibility.checked or ends.compatibility == COMPATIBILITY
