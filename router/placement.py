"""One request in flight and its placements, with the table of what may happen to a placement. Pure.

        PREFILLING ──admitted / decode speaks──> DECODING ──all its choices ended──> DONE
             │                                      │
             └──── worker lost / failed / cancelled ┴──> GONE   (its open choices are placed again)

A placement is one attempt of some choices of a request. Its attempt number travels with every word
about it, so that late words of an attempt that is gone are known as such.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from enum import Enum

from ..protocol.messages import FinishReason, Peer, Prefill, TokenLogprobs, Tokens
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
    number: int = 0  # counts all placements of a router
    lost: frozenset[int] = frozenset()  # of its choices, those to be placed again

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


Row = tuple[int, int, int, int, int, FinishReason, TokenLogprobs | None]


def rows_of(sender: Peer, frame: Tokens) -> Iterator[Row]:
    """A frame's (request, attempt, choice, position, token id, finish, logprobs), one by one.

    Raises ValueError before the first where the columns differ in length.
    """
    count = len(frame.requests)
    logprobs = frame.logprobs or [None] * count
    columns = (frame.attempts, frame.choices, frame.positions, frame.token_ids, frame.finish)
    if any(len(column) != count for column in (*columns, logprobs)):
        raise ValueError(f"{sender.name} sent a frame whose columns differ in length")
    return zip(frame.requests, *columns, logprobs, strict=True)


@dataclass(slots=True)
class Question:
    """The workers that should have a silent choice are asked for it (silence.py)."""

    asked: float = 0.0
    said: set[str] = field(default_factory=set)  # endpoints that do not have it, this time
    complete: bool = False  # nobody has it, this time
    rounds: int = 0  # times in a row that nobody had it

    def again(self, now: float) -> None:
        """It is asked now."""
        self.rounds = self.rounds if self.complete else 0
        self.asked, self.complete = now, False
        self.said.clear()


@dataclass(slots=True)
class Progress:
    """One choice: what was given to the client, and what came before its turn."""

    emitted: list[int] = field(default_factory=list)
    early: dict[int, Entry] = field(default_factory=dict)  # by absolute position
    ended: bool = False
    tries: int = 0  # placements so far
    heard: float = 0.0  # when a worker last said anything of it, or it was placed
    question: Question | None = None
    waits_at: int = -1  # tokens given when its early words were first seen to wait
    waits_since: float = 0.0

    def placed(self, now: float) -> None:
        """A new attempt says again whatever came before its turn."""
        self.tries += 1
        self.early.clear()
        self.heard, self.question, self.waits_at = now, None, -1


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
    hashes: list[bytes] = field(default_factory=list)  # of the prompt's full blocks, once known
    hashed_for: tuple[bytes, int] = (b"", 0)  # the root and page slots they were made with
    reported: bool = False  # the prompt's report was given to the listener
    prompt_length: int = 0
    cached_tokens: int = 0  # of the prompt, as decode knows it; should its report be lost
    stages: Stages = field(default_factory=Stages)
    began: float = 0.0
    admitted_at: float = -1.0

    def __post_init__(self) -> None:
        self.prompt_length = len(self.submission.token_ids)  # read once per streamed token

    def prefill(self, placement: Placement, router: Peer, token_ids: list[int]) -> Prefill:
        """What the placement's worker is told; `token_ids`: the prompt and what was emitted."""
        submission, route = self.submission, placement.route
        return Prefill(
            self.id,
            placement.attempt,
            router,
            submission.model,
            submission.cache_salt,
            token_ids,
            self.prompt_length,
            sorted(placement.choices),
            submission.sampling,
            route.decode if route.kind == "remote" else "",
        )

    def heard(self, placement: Placement, now: float) -> None:
        """A worker spoke of all choices of a placement."""
        for choice in placement.choices:
            self.progress[choice].heard = now

    def regroup(self, choices: Set[int]) -> list[tuple[int, ...]]:
        """How open choices are placed again: those without output together, the others alone."""
        fresh = tuple(sorted(one for one in choices if not self.progress[one].emitted))
        begun = sorted(one for one in choices if self.progress[one].emitted)
        return ([fresh] if fresh else []) + [(one,) for one in begun]
