"""Steps on their way: the one that runs and the one behind it. Pure.

While step n runs, step n+1 waits in the engine's hands, so the device goes on at once when n ends
and the loop's work (commit, frames, words) is hidden behind n+1. A sequence that a step in flight
writes keeps its pages until that step's result was taken, whatever became of it meanwhile.
"""

from collections import deque

from .sequence import Sequence
from .step import Engine, Step, StepResult

MOST = 2


class Flights:
    """Stands between a worker and its engine, and knows which steps were not answered yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._steps: deque[Step] = deque()
        self._void = 0
        self.ahead = 0  # steps that were started behind another one

    @property
    def busy(self) -> bool:
        return bool(self._steps)

    @property
    def last(self) -> Step | None:
        """The step that another one may be started behind; None while there is no room."""
        return self._steps[0] if len(self._steps) == 1 and not self._void else None

    def holds(self, sequence: Sequence) -> bool:
        return any(part.sequence is sequence for step in self._steps for part in step.slices)

    def start(self, step: Step) -> None:
        if len(self._steps) >= MOST:
            raise RuntimeError(f"{MOST} steps are in flight; take a result first")
        self.ahead += bool(self._steps)
        self._steps.append(step)
        self._engine.start(step)

    def finished(self) -> StepResult | None:
        """The oldest step's result, once.

        A step behind one that failed followed tokens that were never drawn: its own result says
        nothing, and is given as that of a step without slices.
        """
        result = self._engine.finished()
        if result is None:
            return None
        self._steps.popleft()
        if self._void:
            self._void -= 1
            return StepResult(Step(()), (), result.seconds)
        if result.error:
            self._void = len(self._steps)
        return result
