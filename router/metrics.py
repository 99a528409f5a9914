"""What the router counts: plain numbers that the hot path adds to. Pure.

Nothing here locks or formats; a scrape reads what is there (metrics_page.py).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

# Upper bounds in seconds. The longer ones are for prompts of a million tokens.
TTFT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
ITL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
E2E_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
STAGE_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
TOKEN_BOUNDS = (16, 64, 256, 1024, 4096, 16384, 32768, 65536, 131072, 262144, 1048576)
GAP_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class Histogram:
    """Counts per bucket (the last one is unbounded) and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: "Histogram") -> None:
        """All that was observed by another one of the same bounds."""
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus wants them: (upper bound, count up to it)."""
        reached = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            reached += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), reached))
        return buckets


def _histogram(bounds: Sequence[float]):  # a default factory for the fields below
    return field(default_factory=lambda: Histogram(bounds))


@dataclass(slots=True)
class Counters:
    """The HTTP side's numbers. Times are seconds."""

    answered: Counter[tuple[str, int]] = field(default_factory=Counter)  # (endpoint, status)
    finished: Counter[str] = field(default_factory=Counter)  # choices: stop, length, failed, ...
    running: int = 0  # requests with the flow
    tokenising: int = 0  # requests in the tokenizer's threads
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token: Histogram = _histogram(TTFT_BOUNDS)  # from the complete request to the first byte
    between_tokens: Histogram = _histogram(ITL_BOUNDS)
    whole_request: Histogram = _histogram(E2E_BOUNDS)
    tokenise: Histogram = _histogram(STAGE_BOUNDS)
    prompt_length: Histogram = _histogram(TOKEN_BOUNDS)
    answer_length: Histogram = _histogram(TOKEN_BOUNDS)
    # The stages of request.Stages, under their own names.
    queue: Histogram = _histogram(STAGE_BOUNDS)
    prefill: Histogram = _histogram(TTFT_BOUNDS)
    transfer: Histogram = _histogram(STAGE_BOUNDS)
    admission_wait: Histogram = _histogram(STAGE_BOUNDS)
    first_decode_step: Histogram = _histogram(STAGE_BOUNDS)
    # How late the loop came to a timer: what one long callback does to everybody else.
    loop_gap: Histogram = _histogram(GAP_BOUNDS)
    longest_gap: float = 0.0

    def loop_was_late(self, seconds: float) -> None:
        self.loop_gap.observe(seconds)
        self.longest_gap = max(self.longest_gap, seconds)


def total(parts: Sequence[Counters]) -> Counters:
    """The sum of several models' numbers; of the longest gap, the longest."""
    whole = Counters()
    for part in parts:
        for one in fields(Counters):
            value = getattr(part, one.name)
            if isinstance(value, Histogram):
                getattr(whole, one.name).add(value)
            elif isinstance(value, Counter):
                getattr(whole, one.name).update(value)
            else:
                setattr(whole, one.name, getattr(whole, one.name) + value)
    whole.longest_gap = max((part.longest_gap for part in parts), default=0.0)
    return whole
