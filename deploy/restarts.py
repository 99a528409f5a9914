"""Whether and when a process that ended is started again. Pure: `now` is an argument."""

from collections import deque
from dataclasses import dataclass, field

FIRST_SECONDS = 0.5  # doubles with every end inside the window
MOST_SECONDS = 30.0
WINDOW_SECONDS = 600.0
MOST_IN_WINDOW = 6


@dataclass(slots=True)
class Restarts:
    """One process's ends. `given_up` says why it is not started again."""

    given_up: str = ""
    _ends: deque[float] = field(default_factory=deque)
    _start_fault: str = ""

    def ended(self, now: float, was_ready: bool, reason: str) -> float | None:
        """When to start it again, or None."""
        while self._ends and self._ends[0] <= now - WINDOW_SECONDS:
            self._ends.popleft()
        self._ends.append(now)
        if not was_ready and reason == self._start_fault:
            self.given_up = f"it cannot start, twice for the same reason: {reason}"
            return None
        self._start_fault = "" if was_ready else reason
        if len(self._ends) > MOST_IN_WINDOW:
            minutes = WINDOW_SECONDS / 60
            self.given_up = f"it ended {len(self._ends)} times in {minutes:.0f} minutes: {reason}"
            return None
        return now + min(MOST_SECONDS, FIRST_SECONDS * 2 ** (len(self._ends) - 1))
