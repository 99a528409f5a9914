"""The hand-over's table of allowed moves, told from its two ends. Pure.

Holder (whose pages are read)            Reader (whose pages are written)

  PUBLISHING ──last block──> PUBLISHED     WAITING ──reserved──> PULLING ──all read──> COMPLETE
      │                          │            │                     │
      └──────── any end ─────────┘            └────── any end ──────┴──> ENDED
                  v
                ENDED

Which role a worker plays is a fact of one lease, not of the worker: the next turn's prefix is read
the other way by the same table.
"""

from collections import Counter
from enum import Enum


class LeaseState(Enum):
    """The holder's view of one hand-over."""

    PUBLISHING = "publishing"
    PUBLISHED = "published"
    ENDED = "ended"


class ReadState(Enum):
    """The reader's view of one hand-over."""

    WAITING = "waiting"  # known, no pages reserved
    PULLING = "pulling"
    COMPLETE = "complete"
    ENDED = "ended"


class Event(Enum):
    """What can happen to a hand-over."""

    LAST_BLOCK = "last block published"
    RELEASED = "released by the reader"
    RESERVED = "pages reserved"
    ALL_READ = "every block read and its generation still valid"
    NOTHING_LEFT = "every choice ended with its first token"
    CANCELLED = "cancelled by the router"
    EXPIRED = "lease ran out"
    PEER_LOST = "the other end is gone"
    REFUSED = "the two workers do not fit"
    READ_FAILED = "a read failed"
    STALE = "a page was granted again before its data was complete"
    CORRUPT = "a page's bytes are not those that were published"
    TIMED_OUT = "a read passed its deadline"
    COMPUTE_FAILED = "the step that computes the blocks failed"


_L, _R, _E = LeaseState, ReadState, Event

HOLDER_MOVES: dict[tuple[LeaseState, Event], LeaseState] = {
    (_L.PUBLISHING, _E.LAST_BLOCK): _L.PUBLISHED,
    (_L.PUBLISHING, _E.NOTHING_LEFT): _L.ENDED,
    (_L.PUBLISHING, _E.RELEASED): _L.ENDED,  # the reader gave up
    (_L.PUBLISHING, _E.CANCELLED): _L.ENDED,
    (_L.PUBLISHING, _E.EXPIRED): _L.ENDED,
    (_L.PUBLISHING, _E.PEER_LOST): _L.ENDED,
    (_L.PUBLISHING, _E.REFUSED): _L.ENDED,
    (_L.PUBLISHING, _E.COMPUTE_FAILED): _L.ENDED,
    (_L.PUBLISHED, _E.RELEASED): _L.ENDED,
    (_L.PUBLISHED, _E.CANCELLED): _L.ENDED,
    (_L.PUBLISHED, _E.EXPIRED): _L.ENDED,
    (_L.PUBLISHED, _E.PEER_LOST): _L.ENDED,
    (_L.PUBLISHED, _E.REFUSED): _L.ENDED,
}

READER_MOVES: dict[tuple[ReadState, Event], ReadState] = {
    (_R.WAITING, _E.RESERVED): _R.PULLING,
    (_R.WAITING, _E.NOTHING_LEFT): _R.ENDED,
    (_R.WAITING, _E.CANCELLED): _R.ENDED,
    (_R.WAITING, _E.EXPIRED): _R.ENDED,
    (_R.WAITING, _E.PEER_LOST): _R.ENDED,
    (_R.WAITING, _E.REFUSED): _R.ENDED,
    (_R.WAITING, _E.TIMED_OUT): _R.ENDED,
    (_R.PULLING, _E.ALL_READ): _R.COMPLETE,
    (_R.PULLING, _E.NOTHING_LEFT): _R.ENDED,
    (_R.PULLING, _E.CANCELLED): _R.ENDED,
    (_R.PULLING, _E.EXPIRED): _R.ENDED,
    (_R.PULLING, _E.PEER_LOST): _R.ENDED,
    (_R.PULLING, _E.REFUSED): _R.ENDED,
    (_R.PULLING, _E.READ_FAILED): _R.ENDED,
    (_R.PULLING, _E.STALE): _R.ENDED,
    (_R.PULLING, _E.CORRUPT): _R.ENDED,
    (_R.PULLING, _E.TIMED_OUT): _R.ENDED,
}


class ForbiddenMove(Exception):
    """An event came in a state that has no row for it: a fault in Penstock."""


class Moves:
    """Looks moves up and counts how often each row was used."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Enum, Event]] = Counter()

    def holder(self, state: LeaseState, event: Event) -> LeaseState:
        """The lease's next state. Raises ForbiddenMove."""
        if (state, event) not in HOLDER_MOVES:
            raise ForbiddenMove(f"holder: {event.value} while {state.value}")
        self.counts[state, event] += 1
        return HOLDER_MOVES[state, event]

    def reader(self, state: ReadState, event: Event) -> ReadState:
        """The read's next state. Raises ForbiddenMove."""
        if (state, event) not in READER_MOVES:
            raise ForbiddenMove(f"reader: {event.value} while {state.value}")
        self.counts[state, event] += 1
        return READER_MOVES[state, event]
