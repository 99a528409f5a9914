"""A holder and a reader of hand-overs, each with its pool, and the wire between them by hand."""

from array import array
from collections import deque
from typing import Any

from msgspec import structs

from penstock.kvtransfer.holder import Holder, Lease
from penstock.kvtransfer.incoming import Allowance, Incoming, ReaderSettings
from penstock.kvtransfer.reader import Reader
from penstock.protocol import blockhash
from penstock.protocol.messages import (
    REVISION,
    Compatibility,
    FirstTokens,
    Introduce,
    Message,
    Peer,
    Prefill,
    Release,
    Renew,
    Sampling,
)
from penstock.protocol.pages import PagePool
from penstock.simulation.memory import PAGE_BYTES, SLOTS, Memory, MemoryDigests
from penstock.simulation.plane import SimulatedPlane

PAGES = 64
LEASE_SECONDS = 10.0
COMPATIBILITY = Compatibility(REVISION, "model", "class", "int32", "layout", PAGE_BYTES, "fake")
ROUTER = Peer("router", 1, "fake://router")
PROMPT = list(range(100, 100 + 5 * SLOTS + 1))  # five full blocks and a tail
FIRST = FirstTokens([0], [7], [""], [None])


class Wire:
    """A transport that keeps what is sent until somebody carries it."""

    def __init__(self, name: str, incarnation: int = 1):
        self.me = Peer(name, incarnation, f"fake://{name}")
        self.sent: deque[tuple[str, Message]] = deque()

    def send(self, endpoint: str, message: Message) -> None:
        self.sent.append((endpoint, message))

    def take(self) -> list[Message]:
        messages = [message for _, message in self.sent]
        self.sent.clear()
        return messages

    def connect(self, endpoint: str) -> None: ...

    def receive(self) -> list[Any]:
        return []

    def forget(self, endpoint: str) -> None: ...


class Ends:
    """`holder` at fake://prefill, `reader` at fake://decode; `now` is turned by hand."""

    def __init__(
        self, checked: bool = False, holds: Compatibility | None = None, **reading: Any
    ) -> None:
        everyone: dict[str, SimulatedPlane] = {}
        self.now = 0.0
        self.source, self.target = Memory(PAGES), Memory(PAGES)
        self.holding = PagePool(self.source.generations)
        self.reading = PagePool(self.target.generations)
        self.holder_wire, self.reader_wire = Wire("prefill"), Wire("decode")
        self.holder_plane = SimulatedPlane(self.source, "fake://prefill", everyone)
        self.plane = SimulatedPlane(self.target, "fake://decode", everyone)
        self.compatibility = structs.replace(COMPATIBILITY, checked=checked)
        holds = holds or self.compatibility
        self.holder = Holder(
            self.holding,
            self.holder_wire,
            self.holder_plane,
            holds,
            LEASE_SECONDS,
            digests=MemoryDigests(self.source) if holds.checked else None,
        )
        self.reader = Reader(
            self.reading,
            self.reader_wire,
            self.plane,
            self.compatibility,
            ReaderSettings(SLOTS, PAGE_BYTES, **reading),
            digests=MemoryDigests(self.target) if checked else None,
        )

    def prompt(
        self, request: int = 1, tokens: list[int] = PROMPT, salt: str = ""
    ) -> tuple[Lease, list[int]]:
        """Compute a prompt on the holder's side; its lease and its sealed pages."""
        prefill = Prefill(
            request, 1, ROUTER, "m", salt, tokens, len(tokens), [0], Sampling(1), "fake://decode"
        )
        lease = self.holder.open(prefill, 0, self.now)
        return lease, self.compute(("sequence", request), tokens, salt)

    def publish_prompt(self) -> tuple[Lease, list[int]]:
        """A prompt to a reader that has been introduced, all of it published but not yet carried;
        its lease and its pages."""
        lease, pages = self.prompt()
        self.settle(3)
        self.holder.publish(lease, pages, FIRST)
        return lease, pages

    def compute(self, holder: object, tokens: list[int], salt: str = "") -> list[int]:
        root = blockhash.root(COMPATIBILITY.model, COMPATIBILITY.numeric_class, salt)
        hashes = blockhash.extend(root, tokens, SLOTS)
        tail = blockhash.tail(root, hashes, tokens, SLOTS)
        pages = self.holding.take(holder, -(-len(tokens) // SLOTS))
        assert pages is not None
        for block, page in enumerate(pages):
            held = tokens[block * SLOTS : (block + 1) * SLOTS]
            self.source.write(page, 0, array("i", held))
            self.holding.seal(page, hashes[block] if block < len(hashes) else None, tail)
        return pages

    def carry(self) -> list[Message]:
        """Deliver everything both have said, until both are silent; what was delivered."""
        carried: list[Message] = []
        while self.holder_wire.sent or self.reader_wire.sent:
            for message in self.holder_wire.take():
                carried.append(message)
                self.reader.take(self.holder_wire.me, message, self.now)  # type: ignore[arg-type]
            for message in self.reader_wire.take():
                carried.append(message)
                assert isinstance(message, Introduce | Renew | Release)
                self.holder.take(self.reader_wire.me, message, self.now)
        return carried

    def turn(self, seconds: float = 0.01) -> list[Message]:
        self.now += seconds
        self.holder.turn(self.now)
        carried = self.carry()
        self.reader.turn(Allowance(8), self.now)
        carried += self.carry()
        self.holding.check()
        self.reading.check()
        return carried

    def settle(self, turns: int = 40) -> list[Message]:
        carried: list[Message] = []
        for _ in range(turns):
            carried += self.turn()
        return carried

    def lost(self) -> list[tuple[str, str]]:
        """Hand-overs lost: event and reason."""
        return [(lost.event.name, lost.reason) for lost in self.reader.lost]

    def complete(self) -> list[Incoming]:
        return self.reader.complete

    def completes(self, turns: int = 5) -> Incoming:
        """The one hand-over, which arrives whole; afterwards nothing is left of it."""
        self.settle(turns)
        (incoming,) = self.complete()
        self.nothing_stranded()
        return incoming

    def nothing_stranded(self) -> None:
        """After sequences and takers let go, every page is free or cached."""
        for incoming in self.reader.complete:
            self.reading.release(incoming.pool_holder)
        assert not self.holder.leases and not self.reader.incoming
        assert self.reading.held == 0 and self.reading.quarantined == 0
        assert not self.plane.open
