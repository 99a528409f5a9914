"""The reader's side of the gather path: scattered small pages come packed, and we unpack them.

A part of a read is asked for by notification, packed by the holder, read as one descriptor into a
staging slot of ours, checked against the slot's sequence, and copied into our pages here. Remote
reads land in staging only, so pages are quiet the moment their read has failed.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy

from ..protocol.memory import PageMemory
from .nixl_lists import LOCAL, Lists, strided
from .nixl_peers import Peer
from .nixl_reads import Read, split
from .nixl_staging import GATHER_BELOW, SLOT_BYTES, UNIT, Slots, page_rows, pages_per_slot, units
from .nixl_transfers import Transfer, Transfers
from .nixl_words import Ask, Done, Ready, Refused, encode

SLOTS = 16
ASKS_PER_PEER = 4  # one is packed, one read, one unpacked; a stopped peer holds no more slots
PATIENCE_SECONDS = 1.0  # for the answer to an ask; then the peer's pages are read by piece
AGAIN_SECONDS = 30.0  # after which such a peer is asked again
MOST_REPACKED = 4  # a slot taken back before we had read it: then by piece, too
FROM_PIECES = 32  # fewer are read sooner one by one
UNPACKING_SECONDS = 0.0005  # per call of progress


@dataclass(slots=True, eq=False)
class _Part:
    read: Read | None  # None: nobody wants it; its slot is kept until its transfer has ended
    peer: Peer
    start: int
    stop: int
    slot: int  # ours
    asked: float
    repacked: int = 0
    ready: Ready | None = None
    transfer: Transfer | None = None
    checking: bool = False  # the transfer reads the slot's sequence, after its bytes


class Gather:
    """Asks, reads slots, unpacks. `refused` counts answers to nothing we asked."""

    def __init__(
        self,
        agent: Any,
        lists: Lists,
        transfers: Transfers,
        memory: PageMemory,
        nixl: bytes,
        most_bytes: int,  # of one post by piece
    ) -> None:
        self.refused = 0
        self.gathered = 0  # pages
        self._agent: Any = agent
        self._transfers = transfers
        self._nixl = nixl
        self._page_bytes = memory.page_bytes
        self._most_bytes = most_bytes
        self._pages = page_rows(memory)
        self._slots = Slots(SLOTS, lists)
        count = SLOTS * SLOT_BYTES // UNIT
        self._units = lists.prepare(LOCAL, [strided(self._slots.address, UNIT, count)])
        sequences = strided(self._slots.sequences_address, 8, SLOTS)
        self._sequences = lists.prepare(LOCAL, [sequences])
        self._free = list(range(SLOTS))
        self._parts: dict[int, _Part] = {}  # by number of the ask
        self._numbers = 0

    @property
    def busy(self) -> bool:
        return bool(self._parts)

    @property
    def open_transfers(self) -> bool:
        return any(part.transfer for part in self._parts.values())

    def suits(self, peer: Peer, pages: int, pieces: int) -> bool:
        """So many pages in so many pieces are better gathered, and may be."""
        if pieces < FROM_PIECES or pages * self._page_bytes >= pieces * GATHER_BELOW:
            return False
        if peer.by_piece and peer.by_piece_since:
            if time.monotonic() - peer.by_piece_since > AGAIN_SECONDS:
                peer.by_piece = ""
        return not peer.by_piece

    def can_ask(self, read: Read) -> bool:
        if self._free and read.peer.asks < ASKS_PER_PEER:
            return True
        now = time.monotonic()
        read.since = read.since or now
        if not read.asks and now - read.since > PATIENCE_SECONDS:
            self._by_piece(read)  # slots are held by peers that stand still
        return False

    def ends(self, pages: int) -> list[int]:
        """Of the parts that a gathered read is asked for in."""
        most = min(pages_per_slot(self._page_bytes), self._most_bytes // self._page_bytes)
        step = max(1, most)
        return [*range(step, pages, step), pages]

    def ask(self, read: Read) -> None:
        """For the next part of a read."""
        part = read.data_part()
        read.posted += 1
        read.asks += 1
        read.peer.asks += 1
        read.since = now = time.monotonic()
        self._ask(_Part(read, read.peer, part.start, part.stop, self._free.pop(), now))

    def answered(self, sender: str, words: Ready | Refused) -> None:
        part = self._parts.get(words.number)
        if part is None or part.peer.words.agent != sender or part.ready:
            self.refused += 1
            return
        if isinstance(words, Refused):
            self._give_up(part, words.reason)
            return
        staging = part.peer.words.staging
        if staging is None or not 0 <= words.slot < staging.slots:
            self.refused += 1
            self._give_up(part, f"it named slot {words.slot}, which it does not have")
            return
        part.ready = words
        covered = (part.stop - part.start) * self._page_bytes
        ours, theirs = units(part.slot, covered), units(words.slot, covered)
        part.transfer = self._transfers.start(part.peer, self._units, ours, part.peer.units, theirs)

    def poll(self) -> None:
        now = time.monotonic()
        until = now + UNPACKING_SECONDS
        for number, part in list(self._parts.items()):
            if number not in self._parts:  # its read was given up meanwhile
                continue
            if part.transfer is None:
                if now - part.asked > PATIENCE_SECONDS:
                    self._give_up(part, f"no answer to an ask in {PATIENCE_SECONDS:.0f} s")
                continue
            while self._parts.get(number) is part and self._transfers.poll(part.transfer):
                self._next(number, part)
            if time.monotonic() > until:
                return

    def drop(self, read: Read) -> None:
        """Nobody wants what is still on its way."""
        for number, part in list(self._parts.items()):
            if part.read is read:
                part.read = None
                if part.transfer is None:
                    self._end(number, part)
        read.asks = 0

    def close(self) -> None:
        self._agent = self._units = self._sequences = None
        self._parts.clear()
        self._pages = self._pages[:0]

    def _ask(self, part: _Part) -> None:
        assert part.read and part.peer.words.staging
        self._numbers += 1
        self._parts[self._numbers] = part
        pages = part.read.remote[part.start : part.stop].astype("<i4").tobytes()
        ask = Ask(part.peer.words.token, self._numbers, pages, self._nixl)
        try:
            self._agent.send_notif(part.peer.words.agent, encode(ask))
        except Exception as error:
            part.peer.lost = True
            part.read.failed = f"{part.peer.endpoint} was lost before reading: {error!r}"

    def _next(self, number: int, part: _Part) -> None:
        """A transfer of this part has ended."""
        transfer, ready, read = part.transfer, part.ready, part.read
        assert transfer and ready
        if read and transfer.failed:
            read.failed = read.failed or transfer.failed
        if read is None or read.failed:
            self._end(number, part)
        elif not part.checking:
            part.checking = True
            ours = numpy.array([part.slot], dtype=numpy.int32)
            theirs = numpy.array([ready.slot], dtype=numpy.int32)
            peer = part.peer
            part.transfer = self._transfers.start(
                peer, self._sequences, ours, peer.sequences, theirs
            )
        elif int(self._slots.sequences[part.slot]) != ready.sequence:
            self._ask_again(number, part)
        else:
            rows = self._slots.rows(part.slot, self._page_bytes, part.stop - part.start)
            numpy.put(self._pages, read.local[part.start : part.stop], rows, mode="clip")
            read.asks -= 1
            self.gathered += part.stop - part.start
            self._end(number, part)

    def _ask_again(self, number: int, part: _Part) -> None:
        """The slot was taken back before we had read it all: its bytes may be another's."""
        del self._parts[number]
        part.repacked += 1
        part.ready = part.transfer = None
        part.checking = False
        part.asked = time.monotonic()
        self._ask(part)
        if part.repacked >= MOST_REPACKED:
            self._give_up(part, "its slots are taken back before they are read")

    def _give_up(self, part: _Part, reason: str) -> None:
        """Read by piece from now on, and this read from its beginning: it has no page yet."""
        part.peer.by_piece = reason
        part.peer.by_piece_since = time.monotonic()
        if part.read and not part.read.failed:
            self._by_piece(part.read)

    def _by_piece(self, read: Read) -> None:
        self.drop(read)
        read.gathered = False
        read.posted = 0
        read.ends, _ = split(read.remote, read.local, self._most_bytes // self._page_bytes)
        read.parts = len(read.ends)

    def _end(self, number: int, part: _Part) -> None:
        del self._parts[number]
        part.peer.asks -= 1
        if part.transfer is None or not part.transfer.stuck:
            self._free.append(part.slot)
        if not part.peer.lost and part.peer.pages is not None:
            try:
                done = Done(part.peer.words.token, number)
                self._agent.send_notif(part.peer.words.agent, encode(done))
            except Exception:  # the holder takes its slot back by itself
                part.peer.lost = True
