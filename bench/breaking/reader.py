"""A reader of hand-overs: everything of a decode worker but its model and its sequences.

It lives in the process that measures, or in one of its own. What became of every hand-over is
kept in `outcomes`; a hand-over that has two of them has broken a promise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...kvtransfer.incoming import Allowance, Incoming, ReaderSettings
from ...kvtransfer.reader import Reader
from ...protocol.messages import Agent, Handoff, LeaseEnded, Published, Refused
from ...protocol.seams import Disconnected, Received
from ...protocol.seen import Seen
from .parts import PAGE_SLOTS, EndSettings, open_parts, wrong_blocks

PULLING_POLL_SECONDS = 0.0002  # as a decode worker's loop
LONGEST_WAIT = 0.01
PATIENCE = 30.0  # seconds until what should come about is given up
COMPLETE = "COMPLETE"
EVERYTHING = Allowance(sequences=1 << 20)
CANARY = 0xEE

Key = tuple[int, int]  # request and attempt


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one hand-over ended here: COMPLETE, or the name of the event that ended it."""

    word: str
    reason: str
    at: float  # on time.monotonic
    wrong: int  # blocks whose bytes are not the published ones
    exposed: float = 0.0  # seconds from the last publication to completion


class ReaderEnd:
    """Turns like a decode worker; takes what completes, checks it and gives its pages back."""

    def __init__(self, settings: EndSettings) -> None:
        self.settings = settings
        self.parts = parts = open_parts(settings)
        times = ReaderSettings(
            PAGE_SLOTS,
            settings.page_bytes,
            settings.renew_every,
            settings.read_seconds,
            settings.waiting_seconds,
        )
        self.reader = Reader(parts.pool, parts.mailbox, parts.plane, parts.compatibility, times)
        self.outcomes: dict[Key, list[Outcome]] = {}
        self.allowance = EVERYTHING
        self.requests = 0
        self._seen = Seen()
        self._held = False

    @property
    def endpoint(self) -> str:
        return self.parts.mailbox.me.endpoint

    # --- the loop ------------------------------------------------------------------------------

    def listen(self, now: float) -> None:
        """Take in what others said; nothing is asked of the plane."""
        for arrival in self.parts.mailbox.receive():
            match arrival:
                case Received(sender, Handoff(prefill) as message):
                    if self._seen.first((prefill.request, prefill.attempt)):
                        self.reader.take(sender, message, now)
                case Received(sender, Published() | Agent() | Refused() | LeaseEnded() as message):
                    self.reader.take(sender, message, now)
                case Disconnected(endpoint):
                    self.reader.holder_lost(endpoint)

    def turn(self, now: float) -> float:
        if self._held:
            return now + LONGEST_WAIT
        self.listen(now)
        due = self.reader.turn(self.allowance, now)
        self._settle()
        poll = PULLING_POLL_SECONDS if self.reader.open_reads else LONGEST_WAIT
        return min(due, now + poll)

    def wait(self, seconds: float, also: int | None = None) -> None:
        self.parts.mailbox.wait(seconds, () if also is None else (also,))

    def pump(self) -> None:
        """One turn and the sleep after it."""
        due = self.turn(time.monotonic())
        self.wait(max(0.0, due - time.monotonic()))

    def until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Pump until a condition holds. Raises TimeoutError naming what never came about."""
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise TimeoutError(f"never came about: {what}")
            self.pump()

    def _settle(self) -> None:
        at = time.monotonic()
        for incoming in self.reader.complete:
            prefill = incoming.handoff.prefill
            wrong = len(wrong_blocks(self.parts.memory, incoming.pages, prefill.request))
            self.parts.pool.release(incoming.pool_holder)
            outcome = Outcome(COMPLETE, "", at, wrong, incoming.exposed_seconds)
            self._note((prefill.request, prefill.attempt), outcome)
        self.reader.complete.clear()
        for lost in self.reader.lost:
            prefill = lost.handoff.prefill
            outcome = Outcome(lost.event.name, lost.reason, at, 0)
            self._note((prefill.request, prefill.attempt), outcome)
        self.reader.lost.clear()

    def _note(self, key: Key, outcome: Outcome) -> None:
        self.outcomes.setdefault(key, []).append(outcome)

    # --- asking --------------------------------------------------------------------------------

    def next_request(self) -> int:
        self.requests += 1
        return self.requests

    def incoming(self, request: int, attempt: int = 1) -> Incoming | None:
        for one in self.reader.incoming.values():
            if (one.handoff.prefill.request, one.handoff.prefill.attempt) == (request, attempt):
                return one
        return None

    def posted(self, request: int) -> bool:
        """Reads of it are under way, or it has ended."""
        incoming = self.incoming(request)
        return bool(incoming and incoming.reads) or self.ended(request)

    def ended(self, request: int, attempt: int = 1) -> bool:
        return (request, attempt) in self.outcomes

    def outcome(self, request: int, attempt: int = 1) -> Outcome:
        """The only one. Raises AssertionError where there are two, or none."""
        found = self.outcomes.get((request, attempt), [])
        assert len(found) == 1, f"request {request} ended {len(found)} times: {found}"
        return found[0]

    def settle(self, request: int, attempt: int = 1) -> Outcome:
        """Pump until this hand-over has ended."""
        self.until(lambda: self.ended(request, attempt), f"the end of request {request}")
        return self.outcome(request, attempt)

    def give_up(self, request: int, attempt: int = 1) -> float:
        """What a router's Cancel does; returns how many seconds its caller waited."""
        began = time.perf_counter()
        self.reader.cancel(request, attempt)
        return time.perf_counter() - began

    # --- pages that were granted again ---------------------------------------------------------

    def grant_again(self, but: int = 0) -> list[int]:
        """Take every page the pool gives (but so many), as another sequence would, and write."""
        pool = self.parts.pool
        pages = pool.take("granted again", max(0, pool.available - but)) or []
        for page in pages:
            self.parts.memory.page(page)[:] = bytes([CANARY]) * self.settings.page_bytes
        return pages

    def give_back(self) -> None:
        self.parts.pool.release("granted again")

    def hit(self, pages: list[int]) -> int:
        """How many of these pages hold anything but what was written by `grant_again`."""
        untouched = bytes([CANARY]) * self.settings.page_bytes
        return sum(self.parts.memory.page(page) != untouched for page in pages)

    @property
    def whole(self) -> bool:
        """Nothing is held, nothing is quarantined: what was borrowed is back."""
        pool = self.parts.pool
        return pool.held == 0 and pool.quarantined == 0 and not self.reader.incoming

    def close(self) -> None:
        self.parts.close()

    # --- as a process of its own ---------------------------------------------------------------

    def command(self, do: str, words: dict[str, Any], now: float) -> dict[str, Any]:
        match do:
            case "hold":
                self._held = True
            case "state":
                pool = self.parts.pool
                pool.check()
                ended = [[*key, *(o.word for o in all_)] for key, all_ in self.outcomes.items()]
                return {"held": pool.held, "ended": ended}
            case _:
                raise ValueError(f"no command {do!r}")
        return {}

    def facts(self) -> dict[str, Any]:
        """Said once, when ready."""
        me = self.parts.mailbox.me
        return {"endpoint": me.endpoint, "incarnation": me.incarnation}
