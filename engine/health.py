"""How a worker knows that it makes progress, and how fast. Pure: `now` is an argument."""

from collections.abc import Callable
from typing import Protocol

from ..protocol.loop import Gaps
from ..protocol.pages import PagePool

FAILED_STEPS = 5  # in a row: a device that is gone fails every step at once
LEAK_SECONDS = 10.0
QUARANTINE_SECONDS = 10.0  # a large read that was given up may be quarantined for a moment


class Rates:
    """Recent step time and token rate (exponential means), and totals since the start."""

    _WEIGHT = 0.2  # of the newest step

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.seconds = 0.0
        self.step_seconds = 0.0
        self.tokens_per_second = 0.0

    def step(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds
        weight = self._WEIGHT if self.steps > 1 else 1.0
        self.step_seconds += weight * (seconds - self.step_seconds)
        if seconds > 0:
            self.tokens_per_second += weight * (tokens / seconds - self.tokens_per_second)


class Living(Protocol):
    """What runs on a thread of its own."""

    @property
    def alive(self) -> bool: ...


class Pulse:
    """Names the part of a worker that makes no progress, and says when only a new start helps."""

    def __init__(
        self,
        step_limit_seconds: float,
        quarantine_share: float,
        gaps: Gaps,
        engine: Living | None = None,  # None: it has no thread that could end
        failure: Callable[[], str] = lambda: "",  # of what it stands on besides; "" while well
    ):
        self._step_limit = step_limit_seconds
        self._quarantine_share = quarantine_share
        self._gaps = gaps
        self._engine = engine
        self._failure = failure
        self._step_since: float | None = None
        self._over_since: float | None = None
        self._leaking_since: float | None = None
        self._failed_steps = 0
        self._last_error = ""

    def step_started(self, now: float) -> None:
        self._step_since = now

    def step_ended(self, now: float, error: str = "", another: bool = False) -> None:
        """`another`: one was waiting behind it, and runs now."""
        self._step_since = now if another else None
        self._failed_steps = self._failed_steps + 1 if error else 0
        self._last_error = error

    def stuck(self, now: float, pool: PagePool, idle: bool = False) -> str:
        """ "" when well; else one sentence for /health. `idle`: nothing is there to hold a page."""
        return self._engine_stuck(now) or self._pool_stuck(now, pool, idle)

    def _engine_stuck(self, now: float) -> str:
        if failure := self._failure():
            return failure
        if self._engine is not None and not self._engine.alive:
            return "engine: its thread has ended"
        if self._step_since is not None and now - self._step_since > self._step_limit:
            return f"engine: a step has been running for {now - self._step_since:.0f} s"
        if self._failed_steps >= FAILED_STEPS:
            return f"engine: {self._failed_steps} steps failed, the last with {self._last_error}"
        return ""

    def _pool_stuck(self, now: float, pool: PagePool, idle: bool) -> str:
        over = pool.quarantined > self._quarantine_share * pool.page_count
        self._over_since = _since(self._over_since, over, now)
        if self._over_since is not None and now - self._over_since > QUARANTINE_SECONDS:
            return f"page pool: {pool.quarantined} of {pool.page_count} pages are quarantined"
        self._leaking_since = _since(self._leaking_since, idle and pool.held > 0, now)
        if self._leaking_since is not None and now - self._leaking_since > LEAK_SECONDS:
            return f"page pool: {pool.held} of {pool.page_count} pages are held, and nothing runs"
        return ""

    def take_longest_gap(self) -> float:
        """Longest time the loop did not listen, since last asked (seconds)."""
        return self._gaps.take()


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Since when something has held without a break; None while it does not."""
    if not holds:
        return None
    return now if before is None else before
