"""One read from asking to quiet: generations if expected, data, generations.

Each phase is posted in parts, and begins when every part of the one before is DONE.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy

from .nixl_generations import Groups, Landing, Room, groups_of
from .nixl_peers import Peer
from .nixl_transfers import Transfer, Transfers
from .plane import STALE
from .targets import Counters, Indices

PIECES_PER_POST = 256  # a descriptor costs 2.4 us to post, so this many stay under a millisecond
PAGES_PER_POST = 16384  # where they lie together: an index costs 13 ns
GROUPS_PER_POST = 256
NO_BREAKS: Indices = numpy.zeros(0, dtype=numpy.int32)
POSTS_IN_FLIGHT = 8  # per read: keeps a fast link full between two calls of progress


class Phase(Enum):
    BEFORE = 1  # generations, because some were expected
    DATA = 2
    AFTER = 3  # generations again, or for the first time
    DONE = 4


NEXT = {Phase.BEFORE: Phase.DATA, Phase.DATA: Phase.AFTER, Phase.AFTER: Phase.DONE}


@dataclass(slots=True, eq=False)
class Read:
    ticket: int
    peer: Peer
    remote: Indices
    local: Indices
    expected: Counters | None
    ends: list[int]  # of the parts that the data is posted in
    gathered: bool  # the data comes through staging
    since: float = 0.0  # when it last asked for a part; 0 before the first
    phase: Phase = Phase.DATA
    groups: Groups | None = None
    room: Room | None = None  # where its generations land
    posted: int = 0  # parts of this phase
    parts: int = 0  # of this phase in all
    unread: int = 0  # parts that travel through staging, not yet in our pages
    unchecked: int = 0  # the same, or there but not yet known to be what was asked for
    transfers: list[Transfer] = field(default_factory=list)  # posted, end not yet known
    failed: str = ""
    reported: bool = False
    given_back: bool = False  # its pages may be the target of another read
    stuck: bool = False  # an error that does not prove the end: never settled

    @property
    def settled(self) -> bool:
        """No byte is on its way, neither to its pages nor to where its generations land."""
        return not self.transfers and not self.stuck

    @property
    def quiet(self) -> bool:
        """No byte can land in its pages. Only data posted by piece ever does: gathered pages are
        written by us, and generations land elsewhere.
        """
        return self.phase is not Phase.DATA or self.settled

    @property
    def done(self) -> bool:
        return self.phase is Phase.DONE

    def data_part(self) -> slice:
        return slice(self.ends[self.posted - 1] if self.posted else 0, self.ends[self.posted])

    def start_again(self) -> None:
        """None of its data is known to be what was asked for."""
        self.phase = Phase.DATA
        self.posted, self.parts = 0, len(self.ends)

    def wait_again(self) -> None:
        """Some of its data comes anew; the generations are read again after that."""
        if self.phase is not Phase.DATA:
            self.phase = Phase.DATA
            self.posted = self.parts = len(self.ends)

    def generations(self) -> tuple[int, ...]:
        assert self.room and self.groups
        return self.room.values(self.groups)


def breaks_of(remote: Indices, local: Indices) -> Indices:
    """Where a new piece begins: pages that follow each other on both sides are one."""
    if len(remote) == 1:
        return NO_BREAKS
    together = (remote[1:] - remote[:-1] == 1) & (local[1:] - local[:-1] == 1)
    return numpy.flatnonzero(~together).astype(numpy.int32) + 1


def split(count: int, breaks: Indices, most: int) -> list[int]:
    """Ends of parts of at most `most` pages and PIECES_PER_POST pieces."""
    most = max(1, min(most, PAGES_PER_POST))
    if count <= most and len(breaks) < PIECES_PER_POST:
        return [count]
    if most <= PIECES_PER_POST:  # wherever they lie: not worth looking
        return [*range(most, count, most), count]
    ends: list[int] = []
    end = 0
    while end < count:
        nearest = int(numpy.searchsorted(breaks, end, side="right")) + PIECES_PER_POST - 1
        full = int(breaks[nearest]) if nearest < len(breaks) else count
        end = min(end + most, full)
        ends.append(end)
    return ends


class Reading:
    """Takes reads through their phases; the data of gathered reads is asked for elsewhere."""

    def __init__(self, transfers: Transfers, landing: Landing, pages: Any) -> None:
        self._transfers = transfers
        self._landing = landing
        self._pages = pages

    def poll(self, read: Read) -> None:
        for transfer in read.transfers[:]:
            if self._transfers.poll(transfer):
                read.transfers.remove(transfer)
                self._note(read, transfer)

    def post(self, read: Read) -> None:
        """The next part."""
        if read.phase is Phase.DATA:
            part = read.data_part()
            ours, local, theirs = self._pages, read.local[part], read.peer.pages
            remote = read.remote[part]
        else:
            assert read.groups and read.room
            numbers = read.groups.numbers
            start = read.posted * GROUPS_PER_POST
            part = slice(start, min(start + GROUPS_PER_POST, len(numbers)))
            remote = numbers[part]
            if read.groups.whole:
                theirs = read.peer.all_generations
                ours, local = self._landing.whole(read.room, read.peer.words.page_count)
            else:
                theirs = read.peer.generations
                ours, local = self._landing.groups(read.room, part, read.peer.group_words)
        read.posted += 1
        transfer = self._transfers.start(read.peer, ours, local, theirs, remote)
        if transfer.ended:
            self._note(read, transfer)
        else:
            read.transfers.append(transfer)

    def has_next(self, read: Read) -> bool:
        """There is a part to post; begins the next phase where this one has ended."""
        if read.failed:
            return False
        if read.posted < read.parts:
            return len(read.transfers) < POSTS_IN_FLIGHT
        if read.transfers or read.unread or read.phase is Phase.DONE:
            return False
        if read.unchecked and read.phase is Phase.AFTER:
            return False
        if read.phase is Phase.BEFORE and self._stale(read):
            read.failed = STALE
            return False
        self.begin(read, NEXT[read.phase])
        return read.parts > 0

    def begin(self, read: Read, phase: Phase) -> None:
        read.phase = phase
        read.posted = 0
        if phase is Phase.DATA:
            read.parts = len(read.ends)
            return
        if read.groups is None or read.room is None:
            words = read.peer.words
            read.groups = groups_of(read.remote, words.page_count, words.page_bytes)
            read.room = self._landing.take(read.groups.room)
        groups = len(read.groups.numbers)
        read.parts = 0 if phase is Phase.DONE else -(-groups // GROUPS_PER_POST)

    def _stale(self, read: Read) -> bool:
        assert read.room and read.groups and read.expected is not None
        return read.room.differ(read.groups, read.expected)

    def forget(self, read: Read) -> None:
        """It is settled."""
        if read.room:
            self._landing.give_back(read.room)

    def _note(self, read: Read, transfer: Transfer) -> None:
        read.failed = read.failed or transfer.failed
        read.stuck = read.stuck or transfer.stuck

    def close(self) -> None:
        self._pages = None
