"""One schedule: a storm, then calm, then judgement. A seed decides everything.

In the storm requests come and things go wrong. Then nothing bad happens any more: every request
must come to its end, and nothing may be left behind anywhere. What every client was given is
compared with the one right answer.
"""

import logging
import random
from collections import Counter
from dataclasses import dataclass, field

from ..router.placement import InFlight
from .chance import Chance, Violation
from .client import CheckedClient
from .conditions import Conditions
from .faults import Faults
from .memory import SLOTS
from .traffic import Traffic
from .world import World

TURNS_TO_END = 12000
TURNS_TO_SETTLE = 3000  # leases of lost words run out, late bytes land


@dataclass(slots=True)
class Outcome:
    """What became of one schedule."""

    seed: int
    level: int
    violation: str = ""  # "" = every invariant held
    faults: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)  # asked, answered, refused, ...
    moves: Counter[str] = field(default_factory=Counter)  # "state: event" of either end
    turns: int = 0
    fingerprint: int = 0
    log: list[str] = field(default_factory=list)


class Schedule:
    """The world of one seed, and its course."""

    def __init__(self, chance: Chance):
        self.chance, self._rng = chance, chance.rng
        self.conditions = Conditions.draw(chance)
        chance.note(f"{self.conditions}")
        self.world = World(chance, self.conditions)
        self.traffic = Traffic(self.world)
        self._faults = Faults(self.world, self.traffic)
        for _ in range(4):
            self.world.turn()

    def play(self) -> None:
        """Raises Violation, or whatever a loop raised."""
        self._storm()
        self._calm()
        longest, may_fail = self.conditions.pages * SLOTS, not self.conditions.patient
        for client in self.world.clients:
            client.judge(longest, may_fail)

    def _storm(self) -> None:
        rng = self._rng
        self.chance.calm = False
        faults, questions = rng.choice([0.01, 0.03, 0.08, 0.2]), rng.choice([0.05, 0.15, 0.4])
        for _ in range(rng.choice([60, 150, 400])):
            if rng.random() < questions:
                self.traffic.ask()
            if rng.random() < faults:
                self._faults.one()
            self.world.revive(self.chance.turn)
            self.world.turn()

    def _calm(self) -> None:
        world = self.world
        self.chance.calm = True
        self.chance.note("CALM")
        self._faults.calm()
        for _ in range(TURNS_TO_END):
            if not world.flow.in_flight and world.links.quiet:
                break
            self._turn()
        if world.flow.in_flight:
            raise Violation("hung: " + "; ".join(map(_describe, world.flow.in_flight.values())))
        for _ in range(TURNS_TO_SETTLE):
            if world.quiet and not self._left_behind():
                return
            self._turn()
        raise Violation("left behind: " + ", ".join(self._left_behind()))

    def _turn(self) -> None:
        self.world.revive(self.chance.turn)  # a stuck worker is started again
        self.world.turn()

    def _left_behind(self) -> list[str]:
        members = self.world.members.values()
        left = [
            f"{one.name} {count} {what}" for one in members for what, count in one.left_behind()
        ]
        left = [text for text in left if " 0 " not in text]
        booked = [one for one in self.world.fleet.workers.values() if one.bookings]
        return left + [f"router {len(one.bookings)} bookings" for one in booked]


def level_of(seed: int) -> int:
    """The standard run mixes all levels: half of it is at the highest."""
    return (2, 0, 2, 1)[seed % 4]


def play(seed: int, level: int | None = None, logged: bool = False) -> Outcome:
    """One schedule from beginning to end; a violation is in the outcome, nothing is raised."""
    level = level_of(seed) if level is None else level
    chance = Chance(seed, level, random.Random(seed), logged)
    outcome = Outcome(seed, level)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # schedules are made of what is logged
    schedule = None
    try:
        schedule = Schedule(chance)
        schedule.play()
    except Exception as error:
        outcome.violation = f"{type(error).__name__}: {error}"
        chance.note(f"VIOLATION {_where(error)}")
    finally:
        logging.disable(before)
    outcome.faults, outcome.turns = chance.faults, chance.turn
    outcome.fingerprint, outcome.log = chance.fingerprint, list(chance.log)
    if schedule is not None:
        outcome.requests = schedule.traffic.counts + _ends(schedule.world.clients)
        counts = schedule.world.moves.counts
        outcome.moves = Counter(
            {f"{state.value}: {event.value}": count for (state, event), count in counts.items()}
        )
    return outcome


def _ends(clients: list[CheckedClient]) -> Counter[str]:
    ends: Counter[str] = Counter()
    for client in clients:
        if client.failure is not None:
            ends["failed with an error"] += 1
        elif client.ended:
            ends["answered"] += 1
        elif client.over:
            ends["lost with their router"] += 1
    return ends


def _where(error: Exception) -> str:
    """The innermost lines, for the log of a replay."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "\n      ".join([f"{type(error).__name__}: {error}", *lines[-6:]])


def _describe(flight: InFlight) -> str:
    placed = [
        f"{one.attempt} {one.phase.value} {one.route.prefill} -> {one.route.decode}"
        for one in flight.placements.values()
    ]
    return f"request {flight.id} reported={flight.reported} {placed} unplaced={flight.unplaced}"
