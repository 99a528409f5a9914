"""An engine whose steps last some turns and may fail, and who notices what changes under a step."""

from collections import deque

from ..engine.step import Slice, Step, StepResult
from ..protocol.pages import PagePool, PageState
from .chance import Chance, Violation
from .engine import SimulatedEngine
from .memory import SLOTS, Memory


class FaultyEngine(SimulatedEngine):
    """What a step was given must not change before it ends, nor must its pages."""

    def __init__(self, chance: Chance, memory: Memory):
        super().__init__(memory)
        self.chance = chance
        self.pool: PagePool | None = None  # set by the worker
        self.failing = chance.rng.choice([0.0, 0.01, 0.03])
        self._ends: deque[int] = deque()  # turn of each step in flight
        self._given: deque[list[tuple]] = deque()

    def ready(self, turn: int) -> bool:
        """Would `finished` give a result? The real engine wakes its loop then."""
        return self.busy and not self.hold and turn >= self._ends[0]

    def start(self, step: Step) -> None:
        super().start(step)
        if not step.slices:
            raise Violation("an empty step")
        holders = {part.sequence.holder for part in step.slices}
        if len(holders) < len(step.slices):
            raise Violation("a sequence is twice in one step")
        self._given.append([self._facts(part) for part in step.slices])
        lasts = 0 if self.chance.calm else self.chance.rng.choice([0, 0, 1, 3])
        self._ends.append(max([self.chance.turn, *self._ends]) + lasts)

    def finished(self) -> StepResult | None:
        if self.step is None or not self.ready(self.chance.turn):
            return None
        self._ends.popleft()
        for part, given in zip(self.step.slices, self._given.popleft(), strict=True):
            self._unchanged(part, given)
        if self.chance.happens(self.failing):
            self.chance.fault("step failed")
            self.fail_next = "out of memory"
        return super().finished()

    def _facts(self, part: Slice) -> tuple:
        one = part.sequence
        pages = one.pages[: -(-(part.start + part.count) // SLOTS)]
        generations = [self.memory.generations[page] for page in pages]
        # What the step before draws may be appended meanwhile, and a page for the step behind.
        known = one.token_ids[: part.start + part.count - part.follows]
        return list(known), list(one.choices), pages, generations

    def _unchanged(self, part: Slice, given: tuple) -> None:
        assert self.pool is not None
        if self._facts(part) != given:
            raise Violation(f"a sequence changed under its step: {given} -> {self._facts(part)}")
        for position in range(part.start, part.start + part.count):
            page = part.sequence.pages[position // SLOTS]
            if self.pool.state(page) is not PageState.OPEN:
                raise Violation(f"a step writes page {page}, {self.pool.state(page).value}")
