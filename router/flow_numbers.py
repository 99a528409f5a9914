"""The flow's numbers: those it is set with, and those it counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class FlowCounters:
    """Plain numbers, read when the metrics are scraped."""

    placed_local: int = 0
    placed_remote: int = 0
    placed_aggregated: int = 0
    placed_prefill_only: int = 0
    replaced: int = 0  # choices placed again after a loss
    differing: int = 0  # alarm: two workers said different tokens for one position
    repeated: int = 0
    stale: int = 0  # words of attempts that are gone
    failed: int = 0
    pulled_bytes: int = 0
    pulled_pages: int = 0
    skipped_pages: int = 0
    inquired: int = 0  # choices asked for, as nothing was heard of them
    unknown: int = 0  # answers that a worker does not have a choice; see metrics_page.py
    overdue: int = 0  # requests ended by request_seconds


@dataclass(frozen=True, slots=True)
class FlowSettings:
    local_prefill_tokens: int = 512
    failover_seconds: float = 15.0  # how long a request waits for a worker to appear
    max_attempts: int = 8
    inquire_seconds: float = 5.0  # silence of a choice after which its workers are asked for it
    request_seconds: float = 3600.0  # a request that has not ended by then fails; 0 = never
    turn_tokens: int = 20_000  # placed again between two looks at the rest; see placing.py
