"""A plane as bad as the real ones: late, piecemeal, out of order, and not over when it says so.

A read goes in pieces of half a page, in any order, over several turns. A piece is fetched from the
holder's memory at one turn and lands in the reader's at a later one, whether anybody progresses or
not. `generations` are read after the last piece was fetched, and a read over a wire completes only
if the holder's plane progressed after that. A read that failed, was abandoned or lost its peer may
go on landing bytes for a while; it is quiet when no piece is left.

Raises Violation when its user breaks a rule of the seam.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..kvtransfer.plane import STALE, Completion, PlaneError
from ..protocol.pages import PagePool, PageState
from .chance import Chance, Violation
from .memory import SLOTS, Memory
from .plane import SimulatedPlane

HALF = SLOTS // 2
AT_ONCE = 1 << 20  # pieces per turn


@dataclass(slots=True)
class Landing:
    """Bytes on their way, fetched already."""

    turn: int
    page: int  # ours
    slot: int
    generation: int  # of our page when the read was posted
    tokens: array


@dataclass(slots=True, eq=False)
class Transfer:
    """One read from its post until no byte of it can land."""

    ticket: int
    source: "FaultyPlane"
    pieces: list[tuple[int, int]]  # index of the page, slot; still to be fetched, last one first
    remote: list[int]
    local: list[int]
    granted: list[int]  # generations of the local pages
    expected: list[int] | None
    starts: int  # turn in which the first piece may move
    rate: int  # pieces per turn
    failing_at: int = -1  # pieces left when the read fails; -1 = it does not
    flipped: bool = False  # one byte changes on the way
    flying: list[Landing] = field(default_factory=list)
    begun: bool = False
    failed: str = ""
    told: bool = False  # its completion was reported
    last_fetch: int = -1  # the holder's count of progress when the last piece was fetched

    @property
    def over(self) -> bool:
        return not (self.pieces or self.flying)


@dataclass(slots=True)
class PlaneOdds:
    """How bad, drawn once per schedule."""

    wire: bool  # piecemeal and dependent on the holder; else one copy, as through shared memory
    fails: float
    refuses: float  # `read` and `add_peer` raise
    flips: float  # only where pages travel with digests

    @staticmethod
    def draw(chance: Chance, checked: bool) -> "PlaneOdds":
        rng = chance.rng
        return PlaneOdds(
            rng.random() < 0.75,
            rng.choice([0.0, 0.05, 0.2]),
            rng.choice([0.0, 0.0, 0.05]),
            rng.choice([0.05, 0.3]) if checked else 0.0,
        )


class FaultyPlane(SimulatedPlane):
    """One process's end. `cut(a, b)` tells whether a partition stands between two endpoints."""

    def __init__(
        self,
        chance: Chance,
        odds: PlaneOdds,
        memory: Memory,
        endpoint: str,
        everyone: dict[str, SimulatedPlane],
        cut: Callable[[str, str], bool],
    ):
        super().__init__(memory, endpoint, everyone)
        self.chance, self.odds, self.cut = chance, odds, cut
        self.pool: PagePool | None = None  # set by the worker, which makes its pool apart
        self.alive = True
        self.progressed = 0
        self.transfers: dict[int, Transfer] = {}

    @property
    def moving(self) -> bool:
        return bool(self.transfers)

    # --- the seam ------------------------------------------------------------------------------

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        if self.chance.happens(self.odds.refuses):
            self.chance.fault("peer refused by the plane", endpoint)
            raise PlaneError("its address cannot be reached")
        super().add_peer(endpoint, incarnation, metadata)

    def remove_peer(self, endpoint: str) -> None:
        source = self.peers.get(endpoint)
        super().remove_peer(endpoint)
        for transfer in self.transfers.values():
            if transfer.source is source and not transfer.told:
                transfer.failed = transfer.failed or "the peer was removed"

    def abandon(self, ticket: int) -> None:
        super().abandon(ticket)
        transfer = self.transfers.get(ticket)
        if transfer is not None and not transfer.told and self.chance.rng.random() < 0.5:
            transfer.failed = transfer.failed or "abandoned"

    def quiet(self, ticket: int) -> bool:
        return ticket not in self.transfers

    def read(
        self,
        endpoint: str,
        remote: Sequence[int],
        local: Sequence[int],
        expected: Sequence[int] | None = None,
    ) -> int:
        if self.chance.happens(self.odds.refuses):
            self.chance.fault("read refused", endpoint)
            raise PlaneError("out of descriptors")
        ticket = super().read(endpoint, remote, local, expected)
        source = self.peers[endpoint]
        assert isinstance(source, FaultyPlane)
        for page in local:
            self._writable(page)
        busy = {page for one in self.transfers.values() for page in one.local}
        if busy & set(local):
            raise Violation("a read into a page where another read may still land")
        self.transfers[ticket] = self._transfer(ticket, source)
        self.chance.note(f"READ {self.key} <- {source.key} {[*remote]} -> {[*local]}")
        return ticket

    def progress(self) -> list[Completion]:
        self.progressed += 1
        if self.hold:
            return []
        return [
            self._tell(transfer)
            for transfer in list(self.transfers.values())
            if self._done(transfer)
        ]

    # --- bytes move by themselves --------------------------------------------------------------

    def move(self) -> None:
        """One turn of the wires into this memory."""
        for transfer in list(self.transfers.values()):
            if not self.cut(self.endpoint, transfer.source.endpoint):
                self._fetch(transfer)
            self._land(transfer)
            if transfer.over and transfer.told:
                del self.transfers[transfer.ticket]

    def _transfer(self, ticket: int, source: "FaultyPlane") -> Transfer:
        _, remote, local = self.open[ticket]
        chance, rng = self.chance, self.chance.rng
        granted = [self.memory.generations[page] for page in local]
        pieces = [(index, slot) for index in range(len(local)) for slot in (0, HALF)]
        made = Transfer(
            ticket,
            source,
            pieces,
            remote,
            local,
            granted,
            self.expected[ticket],
            starts=chance.turn,
            rate=AT_ONCE,
        )
        if chance.calm or not self.odds.wire:
            return made
        rng.shuffle(pieces)
        made.rate = rng.choice([1, 2, 5, AT_ONCE])
        made.starts += rng.choice([0, 1, 1, 5, 30])
        if chance.happens(0.05):
            chance.fault("read delayed", ticket)
            made.starts += rng.choice([300, 1200])
        return made

    def _fetch(self, transfer: Transfer) -> None:
        turn, source = self.chance.turn, transfer.source
        if turn < transfer.starts or not transfer.pieces:
            return
        if not source.alive:
            transfer.failed = transfer.failed or "the holder is gone"
            transfer.pieces.clear()
            return
        if not transfer.begun:
            self._begin(transfer)
        rate = AT_ONCE if self.chance.calm else transfer.rate
        for _ in range(min(rate, len(transfer.pieces))):
            if len(transfer.pieces) == transfer.failing_at:
                self._break(transfer)
                return
            index, slot = transfer.pieces.pop()
            tokens = source.memory.page(transfer.remote[index])[slot : slot + HALF]
            if transfer.flipped:
                self._flip(transfer, tokens)
            late = (
                0
                if self.chance.calm or not self.odds.wire
                else self.chance.rng.choice([0, 0, 1, 3])
            )
            transfer.flying.append(
                Landing(turn + late, transfer.local[index], slot, transfer.granted[index], tokens)
            )
        transfer.last_fetch = source.progressed

    def _begin(self, transfer: Transfer) -> None:
        """The generations that were asked for are looked at before a byte moves."""
        transfer.begun = True
        generations = transfer.source.memory.generations
        now = [generations[page] for page in transfer.remote]
        if transfer.expected is not None and now != transfer.expected:
            transfer.failed = transfer.failed or STALE
            transfer.pieces.clear()
            return
        if self.chance.happens(self.odds.fails):
            transfer.failing_at = self.chance.rng.randint(1, len(transfer.pieces))
        transfer.flipped = self.chance.happens(self.odds.flips)

    def _break(self, transfer: Transfer) -> None:
        """It fails here. What is left is dropped, or lands later."""
        self.chance.fault("read failed", transfer.ticket)
        transfer.failed = transfer.failed or "read failed"
        transfer.failing_at = -1
        if self.chance.rng.random() < 0.5:
            transfer.pieces.clear()
        else:
            self.chance.fault("bytes after a failure", transfer.ticket)
            transfer.starts = self.chance.turn + self.chance.rng.choice([1, 4, 20, 300])

    def _flip(self, transfer: Transfer, tokens: array) -> None:
        self.chance.fault("bytes flipped", transfer.ticket)
        transfer.flipped = False
        tokens[0] ^= 1 << self.chance.rng.randint(0, 8)

    def _land(self, transfer: Transfer) -> None:
        turn = self.chance.turn
        if not transfer.flying:
            return
        for landing in transfer.flying:
            if landing.turn <= turn:
                self._write(landing)
        transfer.flying = [one for one in transfer.flying if one.turn > turn]

    def _write(self, landing: Landing) -> None:
        page, pool = landing.page, self.pool
        assert pool is not None
        if self.memory.generations[page] != landing.generation:
            raise Violation(f"bytes landed in page {page}, which was granted again")
        if pool.state(page) in (PageState.SEALED, PageState.CACHED, PageState.FREE):
            raise Violation(f"bytes landed in page {page}, which is {pool.state(page).value}")
        self.memory.write(page, landing.slot, landing.tokens)

    # --- what the reader is told ---------------------------------------------------------------

    def _done(self, transfer: Transfer) -> bool:
        if transfer.told:
            return False
        if transfer.failed:
            return True
        if not transfer.over or self.cut(self.endpoint, transfer.source.endpoint):
            return False
        if not transfer.source.alive:
            transfer.failed = "the holder is gone"
            return True
        return not self.odds.wire or transfer.source.progressed > transfer.last_fetch

    def _tell(self, transfer: Transfer) -> Completion:
        ticket = transfer.ticket
        transfer.told = True
        del self.open[ticket], self.expected[ticket]
        failed = transfer.failed or ("abandoned" if ticket in self.abandoned else "")
        self.abandoned.discard(ticket)
        if transfer.over:
            del self.transfers[ticket]
        if failed:
            self.chance.note(f"FAILED {self.key} {ticket}: {failed}, over={transfer.over}")
            return Completion(ticket, failed, (), transfer.over)
        generations = transfer.source.memory.generations
        return Completion(ticket, "", tuple(generations[one] for one in transfer.remote), True)

    def _writable(self, page: int) -> None:
        assert self.pool is not None
        if self.pool.state(page) is not PageState.OPEN:
            raise Violation(f"a read into page {page}, which is {self.pool.state(page).value}")
