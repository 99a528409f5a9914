"""Placements of which nothing is heard: asks where they are, and finds those that are lost. Pure.

Delivery is at most once, so any word may be lost, and no wait may depend on one that was. What is
looked at here, choice by choice, is only how long ago something was heard of it:

- nothing for `inquire_seconds`: the workers that should have it are asked (Inquire). Before the
  hand-over is known to be complete these are both, and both must say Unknown twice in a row: each
  speaks of another moment, and the hand-over may have crossed between the two. Where only one
  worker can have it, one Unknown is enough.
- words came, but one before them did not: they wait in `Progress.early`. After the same time
  nobody will say the missing one again.

Says what is so; the flow decides what to do about it. A wrong finding costs a repetition.
"""

from dataclasses import dataclass, field
from functools import partial

from ..protocol.messages import Inquire, Peer, Unknown
from .flow_numbers import FlowCounters
from .guard import Guard
from .placement import InFlight, Phase, Placement, Progress, Question

VISITS = 256  # requests looked at in one tick, so that thousands of them never hold up the loop
ROUNDS = 5  # looks at each request within `inquire_seconds`


@dataclass(frozen=True, slots=True)
class Finding:
    """Choices of one placement with which something is wrong."""

    flight: InFlight
    placement: Placement
    choices: set[int]


@dataclass(slots=True)
class Findings:
    """What one look came to."""

    inquiries: dict[str, Inquire] = field(default_factory=dict)  # by the worker to be asked
    gaps: list[Finding] = field(default_factory=list)  # a word before those that came is missing

    def ask(self, endpoint: str, request: int, attempt: int, choice: int) -> None:
        inquiry = self.inquiries.setdefault(endpoint, Inquire([], [], []))
        inquiry.requests.append(request)
        inquiry.attempts.append(attempt)
        inquiry.choices.append(choice)


class Silence:
    """Looks at all requests in flight, again and again, a bounded number at a time."""

    def __init__(self, inquire_seconds: float, counters: FlowCounters, guard: Guard):
        self._patience = inquire_seconds
        self._counters = counters
        self._guard = guard
        self._to_visit: list[InFlight] = []
        self._next_round = 0.0

    def look(self, in_flight: dict[int, InFlight], now: float) -> Findings:
        """Go on with the round, or begin one where it is time."""
        findings = Findings()
        if not self._to_visit and now >= self._next_round:
            self._next_round = now + self._patience / ROUNDS
            self._to_visit = list(reversed(in_flight.values()))
        for _ in range(min(VISITS, len(self._to_visit))):
            flight = self._to_visit.pop()
            for placement in flight.placements.values():
                visit = partial(self._visit, flight, placement, findings, now)
                self._guard.run(visit, "a request could not be looked at", flight.id)
        self._counters.inquired += sum(len(one.requests) for one in findings.inquiries.values())
        return findings

    def unknown(self, in_flight: dict[int, InFlight], sender: Peer, said: Unknown) -> list[Finding]:
        """A worker's answer. Returns the choices that nobody has any more."""
        lost: dict[tuple[int, int], Finding] = {}
        triples = zip(said.requests, said.attempts, said.choices, strict=True)
        for request, attempt, choice in triples:
            flight = in_flight.get(request)
            placement = flight.placements.get(attempt) if flight is not None else None
            if flight is None or placement is None or choice not in placement.choices:
                continue  # it has ended, or was placed again
            self._counters.unknown += 1
            if _nobody_has(placement, flight.progress[choice], sender.endpoint):
                found = lost.setdefault((request, attempt), Finding(flight, placement, set()))
                found.choices.add(choice)
        return list(lost.values())

    def _visit(
        self, flight: InFlight, placement: Placement, findings: Findings, now: float
    ) -> None:
        gap: set[int] = set()
        for choice in sorted(placement.choices):
            progress = flight.progress[choice]
            if progress.early and self._waits(progress, now):
                gap.add(choice)
                continue
            question = progress.question
            last = max(progress.heard, question.asked if question is not None else 0.0)
            if now - last < self._patience:
                continue
            if question is None or question.asked < progress.heard:
                question = progress.question = Question()
            question.again(now)
            for endpoint in sorted(_keepers(placement)):
                findings.ask(endpoint, flight.id, placement.attempt, choice)
        if gap:
            findings.gaps.append(Finding(flight, placement, gap))

    def _waits(self, progress: Progress, now: float) -> bool:
        """Have its early words waited too long for the one before them?"""
        given = len(progress.emitted)
        if progress.waits_at != given:
            progress.waits_at, progress.waits_since = given, now
        return now - progress.waits_since >= self._patience


def _keepers(placement: Placement) -> set[str]:
    """The workers that may have this placement now."""
    if placement.phase is Phase.PREFILLING:
        return {placement.route.prefill, placement.route.decode}
    return {placement.route.decode}


def _nobody_has(placement: Placement, progress: Progress, endpoint: str) -> bool:
    """Note that this worker does not have the choice; is it the last that could have?"""
    question, keepers = progress.question, _keepers(placement)
    if question is None or question.asked < progress.heard or endpoint not in keepers:
        return False  # not asked, or something was heard since
    question.said.add(endpoint)
    if question.complete or not question.said >= keepers:
        return False
    question.complete = True
    question.rounds += 1
    return question.rounds >= len(keepers)
