"""The time that a loop was there for, which is what it may hold others to. Pure.

A process that was stopped, swapped out or kept by a long collection finds every deadline passed
when it goes on, and what came meanwhile still to be taken in, a bounded part per turn. So while it
stands still next to nothing counts, and behind a standstill nothing is late before there was time
to catch up. A loop that stands still again and again gets no second time to catch up at once, so
that whoever hangs is given up by it, too.
"""

LONGEST_GAP = 0.1  # seconds between two turns that count; a loop that runs comes much sooner
CATCH_UP = 0.25  # seconds of our own, to take in what came during a standstill


class OwnTime:
    """Seconds of its own, from the first look on. `look` comes first in every turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looked = float("inf")
        self._caught_up = float("-inf")

    def look(self, now: float) -> None:
        gap, self._looked = now - self._looked, now
        self.now += min(max(gap, 0.0), LONGEST_GAP)
        if gap > LONGEST_GAP and self.now >= self._caught_up + CATCH_UP:
            self._caught_up = self.now + CATCH_UP

    def late(self, limit: float) -> bool:
        """That moment, in own time, has passed, and not only because we were away."""
        return limit < self.now and self._caught_up <= self.now
