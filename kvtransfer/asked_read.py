"""Reads whose pages are asked for in parts: what planes that send asks have in common. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy

from .plane import Completion
from .targets import Counters, Indices, Targets

P = TypeVar("P")
NO_PAGES: Indices = numpy.zeros(0, dtype=numpy.int32)
NO_COUNTERS: Counters = numpy.zeros(0, dtype=numpy.uint64)


@dataclass(slots=True, eq=False)
class AskedRead(Generic[P]):
    """One read from a peer, and how much of it was asked for."""

    ticket: int
    peer: P
    remote: Indices
    local: Indices
    expected: Counters | None
    asked: int = 0  # pages
    asked_generations: bool = False

    @property
    def pages_left(self) -> bool:
        return self.asked < len(self.remote)

    @property
    def generations_left(self) -> bool:
        """Asked right behind the last part: the holder answers in order."""
        return not self.pages_left and not self.asked_generations

    def next_part(self, pages: int) -> slice:
        """The next pages to ask for, at most so many."""
        return slice(self.asked, min(self.asked + pages, len(self.remote)))

    def guarded(self, part: slice) -> tuple[Indices, Counters]:
        """Pages that must be at these generations before a byte of this part is sent.

        The first ask speaks for all, so that a stale read brings nothing at all.
        """
        if self.expected is None:
            return NO_PAGES, NO_COUNTERS
        whole = part if part.start else slice(None)
        return self.remote[whole], self.expected[whole]


class AskedReads(Generic[P]):
    """The open ones by ticket, and completions nobody has taken yet.

    Every byte of such a read lands inside `progress`, so one that has ended is quiet.
    """

    def __init__(self, page_count: int) -> None:
        self._targets = Targets(page_count)
        self._open: dict[int, AskedRead[P]] = {}
        self._ended: list[Completion] = []
        self._tickets = 0

    def __iter__(self) -> Iterator[AskedRead[P]]:
        """Those that are open now: what ends meanwhile changes nothing."""
        return iter(list(self._open.values()))

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._open

    def __bool__(self) -> bool:
        """Something is open, or its end was not said yet."""
        return bool(self._open or self._ended)

    def get(self, ticket: int) -> AskedRead[P] | None:
        return self._open.get(ticket)

    def begin(self, peer: P, remote: Indices, local: Indices, expected: Counters | None) -> int:
        """Its ticket. Raises PlaneError where another read may still land in a local page."""
        self._targets.take(local)
        self._tickets += 1
        self._open[self._tickets] = AskedRead(self._tickets, peer, remote, local, expected)
        return self._tickets

    def end(self, read: AskedRead[P], failed: str, generations: tuple[int, ...] = ()) -> None:
        del self._open[read.ticket]
        self._targets.give_back(read.local)
        self._ended.append(Completion(read.ticket, failed, generations, True))

    def end_all_of(self, peer: P, reason: str) -> None:
        for read in self:
            if read.peer is peer:
                self.end(read, reason)

    def take_ended(self) -> list[Completion]:
        ended, self._ended = self._ended, []
        return ended
