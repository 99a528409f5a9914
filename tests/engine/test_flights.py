"""Two steps on their way: in order, what they hold, and what a failure makes of the second."""

from collections import deque

import pytest

from penstock.engine.flights import Flights
from penstock.engine.sequence import Sequence
from penstock.engine.step import Drawn, Slice, Step, StepResult
from penstock.protocol.messages import Peer, Prefill, Sampling


class Scripted:
    """Gives the results it was told to give, in order."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.errors: deque[str] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.steps)

    def start(self, step: Step) -> None:
        self.steps.append(step)

    def finished(self) -> StepResult | None:
        if not self.errors:
            return None
        return StepResult(self.steps.popleft(), (Drawn((7,)),), 0.5, self.errors.popleft())


def step_of(request: int) -> Step:
    prefill = Prefill(request, 1, Peer("r", 1, "r"), "m", "", [1], 1, [0], Sampling(seed=1))
    return Step((Slice(Sequence(prefill, [0], [1]), 0, 1, (0,)),))


def test_two_steps_in_order() -> None:
    engine = Scripted()
    flights = Flights(engine)
    first, second = step_of(1), step_of(2)
    assert not flights.busy and flights.last is None and flights.finished() is None
    flights.start(first)
    assert flights.busy and flights.last is first and flights.ahead == 0
    flights.start(second)
    assert flights.last is None and flights.ahead == 1
    with pytest.raises(RuntimeError, match="2 steps"):
        flights.start(step_of(3))
    one, two = first.slices[0].sequence, second.slices[0].sequence
    assert flights.holds(one) and flights.holds(two)
    engine.errors.append("")
    result = flights.finished()
    assert result is not None and result.step is first
    assert not flights.holds(one) and flights.holds(two) and flights.last is second


def test_a_failure_voids_the_step_behind_and_no_later_one() -> None:
    engine = Scripted()
    flights = Flights(engine)
    first, second, third = step_of(1), step_of(2), step_of(3)
    flights.start(first)
    flights.start(second)
    engine.errors.append("out of memory")
    result = flights.finished()
    assert result is not None and result.error and result.step is first
    assert flights.last is None  # nothing may follow what says nothing
    assert flights.holds(second.slices[0].sequence)  # it still writes
    engine.errors.append("")
    void = flights.finished()
    assert void is not None and void.step.slices == () and not void.error
    flights.start(third)
    engine.errors.append("")
    result = flights.finished()
    assert result is not None and result.step is third and not flights.busy
