"""A read whose pages are asked for in parts: what planes that send asks have in common. Pure."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy

from .targets import Counters, Indices

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
