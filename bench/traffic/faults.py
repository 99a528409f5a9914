"""What breaks during a soak, and when: drawn from a seed, within what the supervisor forgives.

The supervisor gives a process up that ended too often (deploy/restarts.py), so a process is ended
at most MOST_ENDS times within its window. Stopping (SIGSTOP, then SIGCONT) is not counted.
"""

import math
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...deploy.restarts import MOST_IN_WINDOW, WINDOW_SECONDS

Kind = Literal["kill", "drain", "stop"]
SIGNALS: dict[Kind, signal.Signals] = {
    "kill": signal.SIGKILL,
    "drain": signal.SIGTERM,
    "stop": signal.SIGSTOP,
}
MOST_ENDS = MOST_IN_WINDOW - 1
SHORTEST_STOP, LONGEST_STOP = 0.2, 8.0  # seconds
SHORTEST_PAUSE = 0.3  # between two faults

# (kind, of whom, weight). "role": all workers of one role at once.
MIX: list[tuple[Kind, str, float]] = [
    ("stop", "worker", 0.36),
    ("kill", "worker", 0.28),
    ("drain", "worker", 0.12),
    ("kill", "router", 0.10),
    ("stop", "router", 0.08),
    ("kill", "role", 0.06),
]


@dataclass(slots=True)
class Fault:
    """One fault on one process. Times in seconds since the soak began; -1 = not (yet)."""

    kind: Kind
    name: str
    role: str
    at: float
    stopped_seconds: float = 0.0
    missed: float = -1.0  # /health listed it no more
    back: float = -1.0  # and again, as a new process where it was ended
    served: float = -1.0  # the first right answer to a request that was asked after it

    def told(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class FaultPlan:
    """Draws faults. `mean_seconds` between two of them."""

    seed: int
    mean_seconds: float
    spared: frozenset[str] = frozenset()  # names: they are stopped, but never ended
    _chance: random.Random = field(init=False)
    _ends: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed} faults")

    def pause(self) -> float:
        return SHORTEST_PAUSE + self._chance.expovariate(1.0 / self.mean_seconds)

    def next(self, roles: Mapping[str, str], well: set[str], now: float) -> list[Fault]:
        """The faults to make now; none where nobody suits. `roles` by name; `well`: those that run
        and are broken by nothing at present."""
        weights = [weight for _, _, weight in MIX]
        kind, whom, _ = self._chance.choices(MIX, weights)[0]
        if whom == "role":
            role = self._chance.choice(sorted({one for one in roles.values() if one != "router"}))
            names = sorted(name for name, one in roles.items() if one == role)
        else:
            router = whom == "router"
            wanted = sorted(name for name, one in roles.items() if (one == "router") == router)
            names = [self._chance.choice(wanted)]
        low, high = math.log(SHORTEST_STOP), math.log(LONGEST_STOP)
        seconds = math.exp(self._chance.uniform(low, high)) if kind == "stop" else 0.0
        names = [name for name in names if name in well]
        if kind != "stop":
            names = [n for n in names if n not in self.spared and self._may_end(n, now)]
        return [Fault(kind, name, roles[name], now, seconds) for name in names]

    def _may_end(self, name: str, now: float) -> bool:
        recent = [at for at in self._ends.get(name, []) if at > now - WINDOW_SECONDS]
        self._ends[name] = recent
        if len(recent) >= MOST_ENDS:
            return False
        recent.append(now)
        return True
