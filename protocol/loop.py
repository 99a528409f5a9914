"""The one loop of a worker process: wait, turn, and note the longest gap. Knows no role."""

from collections.abc import Callable
from typing import Protocol

from .seams import Clock


class Worker(Protocol):
    """What a loop drives. `turn` does everything that is due and never blocks."""

    def turn(self, now: float) -> float:
        """Receive, decide, start, send; returns the time at which to come back at the latest."""
        ...


class Gaps:
    """Longest time between two moments at which the loop listened, since last asked."""

    def __init__(self) -> None:
        self._longest = 0.0
        self.ever = 0.0

    def note(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)
        self.ever = max(self.ever, seconds)

    def take(self) -> float:
        longest, self._longest = self._longest, 0.0
        return longest


def run(
    worker: Worker,
    clock: Clock,
    wait: Callable[[float], None],
    stopping: Callable[[], bool],
    gaps: Gaps,
) -> None:
    """Turn until told to stop. `wait(seconds)` sleeps until something arrives or time is up."""
    while not stopping():
        began = clock.now()
        due = worker.turn(began)
        ended = clock.now()
        gaps.note(ended - began)
        wait(max(0.0, due - ended))
