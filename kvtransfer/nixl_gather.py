"""The reader's side of the gather path: scattered small pages come packed, and we unpack them.

A read's pages are asked for by notification, a slotful at a time but several per ask, so that the
holder packs one while we read another. Each is read as one descriptor into a staging slot of ours
and copied into our pages here. Then the slots' sequences are read, of several slotfuls at once,
and what turns out not to be what was asked for is asked for again: until that is known, its read
is not done. Remote reads land in staging only, so pages are quiet the moment their read has failed.
"""

import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy

from ..protocol.memory import PageMemory
from .nixl_lists import LOCAL, ONE, Lists, strided
from .nixl_peers import Peer
from .nixl_reads import Read, breaks_of, split
from .nixl_staging import (
    SEQUENCES_BYTES,
    SLOT_BYTES,
    SLOTS,
    UNIT,
    Sequences,
    Slots,
    page_rows,
    pages_per_slot,
    pieces_worth_gathering,
    units,
)
from .nixl_transfers import Transfer, Transfers
from .nixl_words import MOST_PAGES_PER_ASK, Ask, Done, Ready, Refused, encode

PARTS_PER_PEER = 8  # a stopped peer holds no more slots
CHECKED_AT_ONCE = 3  # slotfuls, unless no other is on its way
CHECKS = 64  # in flight, each with a row of sequences
UNPACKED_AT_ONCE = 4  # slotfuls per call of progress
PATIENCE_SECONDS = 1.0  # for the answer to an ask; then the peer's pages are read by piece
AGAIN_SECONDS = 30.0  # after which such a peer is asked again
MOST_REPACKED = 4  # a slot taken back before we had read it: then by piece, too


class Stage(Enum):
    ASKED = 1
    READING = 2  # from the holder's slot into ours
    ARRIVED = 3
    CHECKING = 4  # whether it is what was asked for


@dataclass(slots=True, eq=False)
class _Part:
    """A slotful of a read."""

    number: int  # of the ask
    read: Read | None  # None: nobody wants it; kept until its transfer has ended
    peer: Peer
    start: int
    stop: int
    slot: int  # ours, until it is unpacked
    asked: float
    stage: Stage = Stage.ASKED
    repacked: int = 0
    ready: Ready | None = None
    transfer: Transfer | None = None


@dataclass(slots=True, eq=False)
class _Check:
    """The sequences of a peer's slots, read after the bytes of some of them."""

    parts: list[_Part]
    row: int
    transfer: Transfer


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
        slotful = pages_per_slot(memory.page_bytes)
        self._step = max(1, min(slotful, most_bytes // memory.page_bytes))
        # The holder cuts by slotfuls, so smaller parts are asked for one by one.
        self._parts_per_ask = MOST_PAGES_PER_ASK // slotful if self._step == slotful else 1
        self._pages = page_rows(memory)
        self._slots = Slots(lists)
        count = SLOTS * SLOT_BYTES // UNIT
        self._units = lists.prepare(LOCAL, [strided(self._slots.address, UNIT, count)])
        self._sequences = Sequences(CHECKS, lists)
        rows = strided(self._sequences.address, SEQUENCES_BYTES, CHECKS)
        self._rows = lists.prepare(LOCAL, [rows])
        self._free = list(range(SLOTS))
        self._free_rows = list(range(CHECKS))
        self._parts: dict[int, _Part] = {}  # by number
        self._checks: list[_Check] = []
        self._numbers = 0

    @property
    def busy(self) -> bool:
        return bool(self._parts)

    @property
    def open_transfers(self) -> bool:
        return bool(self._checks) or any(part.transfer for part in self._parts.values())

    def suits(self, peer: Peer, pages: int, pieces: int) -> bool:
        """So many pages in so many pieces are better gathered, and may be."""
        if pieces < pieces_worth_gathering(pages * self._page_bytes / pieces):
            return False
        if peer.by_piece and peer.by_piece_since:
            if time.monotonic() - peer.by_piece_since > AGAIN_SECONDS:
                peer.by_piece = ""
        return not peer.by_piece

    def can_ask(self, read: Read) -> bool:
        if self._free and read.peer.asks < PARTS_PER_PEER:
            return True
        now = time.monotonic()
        read.since = read.since or now
        if not read.unchecked and now - read.since > PATIENCE_SECONDS:
            self._by_piece(read)  # slots are held by peers that stand still
        return False

    def ends(self, pages: int) -> list[int]:
        """Of the parts that a gathered read is asked for in."""
        return [*range(self._step, pages, self._step), pages]

    def ask(self, read: Read) -> None:
        """For the next parts of a read."""
        peer = read.peer
        left = read.parts - read.posted
        count = min(left, self._parts_per_ask, len(self._free), PARTS_PER_PEER - peer.asks)
        read.since = now = time.monotonic()
        parts: list[_Part] = []
        for _ in range(count):
            pages = read.data_part()
            read.posted += 1
            self._numbers += 1
            slot = self._free.pop()
            parts.append(_Part(self._numbers, read, peer, pages.start, pages.stop, slot, now))
        read.unread += count
        read.unchecked += count
        peer.asks += count
        self._ask(read, parts)

    def answered(self, sender: str, words: Ready | Refused) -> None:
        part = self._parts.get(words.number)
        if part is None or part.peer.words.agent != sender or part.stage is not Stage.ASKED:
            self.refused += 1
            return
        if isinstance(words, Refused):
            self._give_up(part, words.reason)
            return
        if not 0 <= words.slot < SLOTS:
            self.refused += 1
            self._give_up(part, f"it named slot {words.slot}, which it does not have")
            return
        part.ready = words
        part.stage = Stage.READING
        covered = (part.stop - part.start) * self._page_bytes
        ours, theirs = units(part.slot, covered), units(words.slot, covered)
        part.transfer = self._transfers.start(part.peer, self._units, ours, part.peer.units, theirs)

    def poll(self) -> None:
        now = time.monotonic()
        arrived: list[_Part] = []
        for part in list(self._parts.values()):
            if part.stage is Stage.READING:
                assert part.transfer
                if self._transfers.poll(part.transfer):
                    arrived.append(part)
                    if len(arrived) == UNPACKED_AT_ONCE:
                        break
            elif part.stage is Stage.ASKED and now - part.asked > PATIENCE_SECONDS:
                if part.number in self._parts:  # its read was not given up just before
                    self._give_up(part, f"no answer to an ask in {PATIENCE_SECONDS:.0f} s")
        arrived = [part for part in arrived if self._arrive(part)]
        self._check_due()
        for part in arrived:  # while the check is on its way
            self._unpack(part)
        for check in [check for check in self._checks if self._transfers.poll(check.transfer)]:
            self._checked(check)

    def drop(self, read: Read) -> None:
        """Nobody wants what is still on its way."""
        dropped = [part for part in self._parts.values() if part.read is read]
        for part in dropped:
            part.read = None
        self._end([part for part in dropped if part.stage in (Stage.ASKED, Stage.ARRIVED)])
        read.unread = read.unchecked = 0

    def close(self) -> None:
        self._agent = self._units = self._rows = None
        self._parts.clear()
        self._checks.clear()
        self._pages = self._pages[:0]

    def _ask(self, read: Read, parts: list[_Part]) -> None:
        """For parts that follow each other, in pages and in numbers."""
        peer = read.peer
        self._parts.update((part.number, part) for part in parts)
        pages = read.remote[parts[0].start : parts[-1].stop].astype("<i4").tobytes()
        ask = Ask(peer.words.token, parts[0].number, pages, self._nixl)
        try:
            self._agent.send_notif(peer.words.agent, encode(ask))
        except Exception as error:
            peer.lost = True
            read.failed = f"{peer.endpoint} was lost before reading: {error!r}"

    def _arrive(self, part: _Part) -> bool:
        """Its transfer has ended; True where it is to be unpacked."""
        assert part.transfer
        if part.transfer.stuck:
            part.slot = -1  # never free again
        read = part.read
        if read:
            read.failed = read.failed or part.transfer.failed
        if read is None or read.failed:
            self._end([part])
            return False
        part.transfer = None
        part.stage = Stage.ARRIVED
        return True

    def _unpack(self, part: _Part) -> None:
        assert part.read
        rows = self._slots.rows(part.slot, self._page_bytes, part.stop - part.start)
        numpy.put(self._pages, part.read.local[part.start : part.stop], rows, mode="clip")
        self._free.append(part.slot)
        part.slot = -1
        part.read.unread -= 1

    def _check_due(self) -> None:
        """Check what has arrived of each peer, as soon as it is enough or the last."""
        waiting: dict[Peer, list[_Part]] = {}
        on_their_way: set[Peer] = set()
        for part in self._parts.values():
            if part.stage is Stage.ARRIVED:
                waiting.setdefault(part.peer, []).append(part)
            elif part.stage is not Stage.CHECKING:
                on_their_way.add(part.peer)
        for peer, parts in waiting.items():
            enough = len(parts) >= CHECKED_AT_ONCE or peer not in on_their_way
            if enough and self._free_rows:
                self._check(peer, parts)

    def _check(self, peer: Peer, parts: list[_Part]) -> None:
        """The holder may have its slots back by the same transfer."""
        row = self._free_rows.pop()
        word = encode(Done(peer.words.token, [part.number for part in parts]))
        ours = numpy.array([row], dtype=numpy.int32)
        transfer = self._transfers.start(peer, self._rows, ours, peer.sequences, ONE, word)
        for part in parts:
            part.stage = Stage.CHECKING
        self._checks.append(_Check(parts, row, transfer))

    def _checked(self, check: _Check) -> None:
        self._checks.remove(check)
        sequences = self._sequences.words[check.row].tolist()
        if not check.transfer.stuck:
            self._free_rows.append(check.row)
        for part in check.parts:
            self._forget(part)
            read = part.read
            if read:
                read.failed = read.failed or check.transfer.failed
            if read is None or read.failed:
                continue
            assert part.ready
            if sequences[part.ready.slot] != part.ready.sequence:
                self._ask_again(read, part)
            else:
                read.unchecked -= 1
                self.gathered += part.stop - part.start

    def _ask_again(self, read: Read, part: _Part) -> None:
        """The slot was taken back before we had read it all: its bytes may be another's."""
        if part.repacked + 1 >= MOST_REPACKED or not self._free:
            self._give_up(part, "its slots are taken back before they are read")
            return
        self._numbers += 1
        slot, now = self._free.pop(), time.monotonic()
        again = _Part(self._numbers, read, part.peer, part.start, part.stop, slot, now)
        again.repacked = part.repacked + 1
        part.peer.asks += 1
        read.unread += 1
        read.wait_again()
        self._ask(read, [again])

    def _give_up(self, part: _Part, reason: str) -> None:
        """Read by piece from now on, and this read from its beginning."""
        part.peer.by_piece = reason
        part.peer.by_piece_since = time.monotonic()
        if part.read and not part.read.failed:
            self._by_piece(part.read)

    def _by_piece(self, read: Read) -> None:
        self.drop(read)
        read.gathered = False
        breaks = breaks_of(read.remote, read.local)
        read.ends = split(len(read.remote), breaks, self._most_bytes // self._page_bytes)
        read.start_again()

    def _end(self, parts: list[_Part]) -> None:
        """They are quiet; the holder may have its slots back."""
        for part in parts:
            self._forget(part)
        if not parts or parts[0].peer.lost or parts[0].peer.pages is None:
            return
        peer = parts[0].peer
        try:
            done = Done(peer.words.token, [part.number for part in parts])
            self._agent.send_notif(peer.words.agent, encode(done))
        except Exception:  # the holder takes its slots back by itself
            peer.lost = True

    def _forget(self, part: _Part) -> None:
        del self._parts[part.number]
        part.peer.asks -= 1
        if part.slot >= 0:
            self._free.append(part.slot)
