"""One request in flight and its placements, with the table of what may happen to a placement. Pure.

        PREFILLING ──admitted / decode speaks──> DECODING ──all its choices ended──> DONE
             │                                      │
             └──── worker lost / failed / cancelled ┴──> GONE   (its open choices are placed again)

A placement is one attempt of some choices of a request. Its attempt number travels with every word
about it, so that late words of an attempt that is gone are known as such.
"""

from dataclasses import dataclass, field
from enum import Enum

from ..protocol.messages import FinishReason, TokenLogprobs
from .policy import Route
from .request import Listener, Stages, Submission


class Phase(Enum):
    PREFILLING = "prefilling"
    DECODING = "decoding"
    DONE = "done"
    GONE = "gone"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.PREFILLING: frozenset({Phase.DECODING, Phase.DONE, Phase.GONE}),
    Phase.DECODING: frozenset({Phase.DONE, Phase.GONE}),
    Phase.DONE: frozenset(),
    Phase.GONE: frozenset(),
}


@dataclass(slots=True, eq=False)
class Placement:
    """One attempt: which choices, where, how far."""

    attempt: int
    choices: set[int]  # those still open
    route: Route
    phase: Phase = Phase.PREFILLING

    def move(self, to: Phase) -> None:
        if to not in MOVES[self.phase]:
            raise ValueError(f"placement cannot go from {self.phase.value} to {to.value}")
        self.phase = to

    def depends_on(self, endpoint: str) -> bool:
        """Would the end of this worker end the placement?"""
        if endpoint == self.route.decode:
            return True
        return endpoint == self.route.prefill and self.phase is Phase.PREFILLING


@dataclass(frozen=True, slots=True)
class Entry:
    """A token as a worker said it."""

    token_id: int
    logprobs: TokenLogprobs | None
    finish: FinishReason


@dataclass(slots=True)
class Progress:
    """One choice: what was given to the client, and what came before its turn."""

    emitted: list[int] = field(default_factory=list)
    early: dict[int, Entry] = field(default_factory=dict)  # by absolute position
    ended: bool = False
    tries: int = 0  # placements so far


@dataclass(slots=True, eq=False)
class InFlight:
    """One request from submission to its end."""

    id: int
    submission: Submission
    listener: Listener
    progress: list[Progress]
    placements: dict[int, Placement] = field(default_factory=dict)
    unplaced: list[tuple[int, ...]] = field(default_factory=list)  # groups of choices
    unplaced_since: float = 0.0
    attempts: int = 0
    failed_at: set[str] = field(default_factory=set)  # endpoints where an attempt failed
    hashes: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)  # by choice, length
    reported: bool = False  # the prompt's report was given to the listener
    prompt_length: int = 0
    stages: Stages = field(default_factory=Stages)
    admitted_at: float = -1.0

    def __post_init__(self) -> None:
        self.prompt_length = len(self.submission.token_ids)  # read once per streamed token

    def regroup(self, choices: set[int]) -> list[tuple[int, ...]]:
        """How open choices are placed again: those without output together, the others alone."""
        fresh = tuple(sorted(one for one in choices if not self.progress[one].emitted))
        begun = sorted(one for one in choices if self.progress[one].emitted)
        return ([fresh] if fresh else []) + [(one,) for one in begun]
