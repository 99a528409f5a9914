"""A failed step once more, slice by slice: one bad request shall not fail its company. Pure."""

from collections import deque
from dataclasses import replace

from .step import Slice, Step, StepResult


class Alone:
    """Slices of steps that raised, waiting to be run each by itself."""

    def __init__(self) -> None:
        self._slices: deque[Slice] = deque()

    def take(self, result: StepResult) -> bool:
        """True: the step had several slices; they are tried alone before anybody is told."""
        if not result.error or len(result.step.slices) < 2:
            return False
        # What they follow is known by now.
        self._slices.extend(replace(part, follows=False) for part in result.step.slices)
        return True

    @property
    def waiting(self) -> bool:
        return bool(self._slices)

    def next_step(self) -> Step | None:
        """One slice, of a sequence that was not dropped meanwhile."""
        while self._slices:
            part = self._slices.popleft()
            if part.sequence.pages and not part.sequence.cancelled:
                return Step((part,))
        return None
