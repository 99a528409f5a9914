"""What the parts of one schedule share: its dice, its time in turns, its log and its counts.

Everything that is random in a schedule comes from generators seeded here, so that a seed is a
schedule, whatever machine plays it.
"""

import random
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field

from ..protocol.messages import Message

LOG_LINES = 4000


class Violation(AssertionError):
    """An invariant does not hold."""


class Crashed(Exception):
    """A simulated process ends here, between two words. Not an error of ours."""


@dataclass(slots=True)
class Chance:
    """One schedule's luck. `calm` ends the storm: from then on nothing bad happens any more."""

    seed: int
    level: int
    rng: random.Random
    logged: bool = False  # only a replay pays for a log
    turn: int = 0
    calm: bool = True
    faults: Counter[str] = field(default_factory=Counter)  # injected, by kind
    fingerprint: int = 0  # of every word sent: equal for two equal schedules
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    def dice(self, name: str) -> random.Random:
        """A generator of its own for one part, which then depends on no other part's draws."""
        return random.Random(f"{self.seed} {name}")

    def happens(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def fault(self, kind: str, detail: object = "") -> None:
        """Count one injected fault."""
        self.faults[kind] += 1
        if self.logged:
            self.log.append(f"{self.turn:5d} ** {kind} {detail}")

    def word(self, sender: str, endpoint: str, message: Message, body: bytes) -> None:
        """Somebody said something."""
        self.fingerprint = zlib.crc32(body, self.fingerprint + len(endpoint))
        if self.logged:
            self.log.append(f"{self.turn:5d} {sender} -> {endpoint} {str(message)[:260]}")

    def note(self, line: str) -> None:
        """Something worth reading in a replay."""
        if self.logged:
            self.log.append(f"{self.turn:5d} {line}")
