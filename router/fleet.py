"""What the router knows of each worker: description, load, cached blocks, what it placed there.

Pure. Load comes with every Tokens frame and Status, so it is never older than one step; what this
router placed since then is added from its own books (`Booking`).
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from ..protocol.messages import (
    Compatibility,
    Hello,
    Peer,
    Role,
    Status,
    WorkerDescription,
    WorkerState,
)

STOOD_STILL = 0.75  # of silence_seconds: a link that breaks after so much silence broke of it
GONE_SECONDS = 600.0  # a worker that hung, and whose link broke, is not expected back after this
UNKNOWN_RATE = 1000.0  # prefill tokens per second of a worker that has not computed any yet


@dataclass(slots=True)
class Booking:
    """What one placed attempt will ask of a worker."""

    tokens: int  # prompt tokens to compute; 0 once they are
    pages: int


class Bookings:
    """What this router placed on one worker, by (request, attempt), and how much that is.

    The sums are kept, not added up when asked for: they are asked for at every placement, and
    when a worker dies thousands are placed at once.
    """

    __slots__ = ("tokens", "pages", "_entries")

    def __init__(self) -> None:
        self.tokens = 0
        self.pages = 0
        self._entries: dict[tuple[int, int], Booking] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: tuple[int, int], booking: Booking) -> None:
        self.drop(key)
        self._entries[key] = booking
        self.tokens += booking.tokens
        self.pages += booking.pages

    def computed(self, key: tuple[int, int]) -> None:
        """Its prompt is: nothing of it waits before others any more."""
        if booking := self._entries.get(key):
            self.tokens -= booking.tokens
            booking.tokens = 0

    def drop(self, key: tuple[int, int]) -> None:
        if booking := self._entries.pop(key, None):
            self.tokens -= booking.tokens
            self.pages -= booking.pages


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, as of its last word."""

    peer: Peer
    description: WorkerDescription
    state: WorkerState
    heard: float
    cached: set[bytes] = field(default_factory=set)
    counters: dict[str, float] = field(default_factory=dict)
    bookings: Bookings = field(default_factory=Bookings)
    stuck: str = ""
    lane: str = ""  # what its plane really uses, once it said so

    @property
    def role(self) -> Role:
        return self.description.role

    @property
    def model(self) -> str:
        return self.description.model

    @property
    def transport(self) -> str:
        return self.lane or self.description.transport

    @property
    def usable(self) -> bool:
        """New work may be placed here."""
        return not self.stuck

    @property
    def queue_tokens(self) -> int:
        """Prompt tokens before a new one. Its own word covers other routers, the books the gap."""
        return max(self.state.waiting_tokens, self.bookings.tokens)

    @property
    def tokens_per_second(self) -> float:
        return self.state.tokens_per_second or UNKNOWN_RATE

    @property
    def pages_taken(self) -> int:
        return max(self.state.held_pages, self.bookings.pages)

    def cached_blocks(self, hashes: list[bytes]) -> int:
        """How many leading blocks of a prompt are cached here."""
        for count, block_hash in enumerate(hashes):
            if block_hash not in self.cached:
                return count
        return len(hashes)


@dataclass(slots=True)
class Misfit:
    """A worker of no model served here, or that differs from the others of its model in something
    that must be equal."""

    peer: Peer
    model: str
    reason: str
    heard: float


@dataclass(slots=True)
class Hanging:
    """A worker that said nothing for too long, and was not heard again."""

    worker: Worker
    until: float = float("inf")  # when it is taken for gone


class Fleet:
    """All workers by endpoint. Those that do not fit the first one of their model are named, and
    not used.

    One that says nothing for too long hangs: it is not used, and named until it is heard again or
    started again. Its link may stand, or break of that silence; when a process ends, its links
    break at once.
    """

    def __init__(
        self,
        silence_seconds: float,
        started: float = float("-inf"),
        models: Collection[str] = (),
    ):
        """`models` are served, () = whichever. A router that started a moment ago waits for workers
        as after the loss of one: they were probably there before, and are on their way to it."""
        self._silence_seconds = silence_seconds
        self.models = tuple(models)
        self.workers: dict[str, Worker] = {}
        self.misfits: dict[str, Misfit] = {}
        self.hanging: dict[str, Hanging] = {}
        self.joined = 0
        self.left = 0
        self.last_loss = started
        self.revision = 0  # grows with every change of who can be given work

    def of(self, model: str) -> list[Worker]:
        """The workers of one model."""
        return [one for one in self.workers.values() if one.description.model == model]

    def context_length(self, model: str) -> int:
        """Longest prompt and answer that some route can hold; 0 = no worker is known."""
        longest = {"prefill": 0, "decode": 0}
        for worker in self.of(model):
            role = "prefill" if worker.role == "prefill" else "decode"
            longest[role] = max(longest[role], worker.description.context_length)
        known = [length for length in longest.values() if length]
        return min(known, default=0)

    def knows(self, peer: Peer) -> bool:
        known = self.workers.get(peer.endpoint) or self.misfits.get(peer.endpoint)
        return known is not None and known.peer.incarnation == peer.incarnation

    def past(self, peer: Peer) -> bool:
        """Its process is gone: a later incarnation (they grow) is known at its endpoint."""
        known = self.workers.get(peer.endpoint) or self.misfits.get(peer.endpoint)
        return known is not None and known.peer.incarnation > peer.incarnation

    def hello(self, peer: Peer, message: Hello, now: float) -> bool:
        """A worker joins, or says again what it is. False: it does not fit, see `misfits`."""
        self.misfits.pop(peer.endpoint, None)
        for endpoint, hung in list(self.hanging.items()):
            if hung.worker.peer.name == peer.name:  # it may have another endpoint now
                del self.hanging[endpoint]
        before = self.workers.get(peer.endpoint)
        self.revision += 1
        if reason := self._unfit(before, message.description):
            self.workers.pop(peer.endpoint, None)
            self.misfits[peer.endpoint] = Misfit(peer, message.description.model, reason, now)
            return False
        bookings = before.bookings if before and before.peer == peer else Bookings()
        self.joined += before is None
        self.workers[peer.endpoint] = Worker(
            peer, message.description, message.state, now, set(message.cached), {}, bookings
        )
        return True

    def _unfit(self, before: Worker | None, description: WorkerDescription) -> str:
        """Why a worker cannot be used, or ""."""
        if self.models and description.model not in self.models:
            served = ", ".join(self.models)
            return f"model is {description.model!r}, and this router serves {served}"
        others = [one for one in self.of(description.model) if one is not before]
        return _difference(others[0].description, description) if others else ""

    def status(self, peer: Peer, message: Status, now: float) -> bool:
        """A known worker's beat. True: with this one it says that it is stuck."""
        if misfit := self.misfits.get(peer.endpoint):
            misfit.heard = now
        worker = self.workers.get(peer.endpoint)
        if worker is None:
            return False
        got_stuck = bool(message.stuck) and not worker.stuck
        worker.heard = now
        worker.state = message.state
        self.revision += worker.stuck != message.stuck
        worker.stuck = message.stuck
        worker.lane = message.transport
        worker.counters = message.counters or worker.counters
        worker.cached.difference_update(message.cached_removed)
        worker.cached.update(message.cached_added)
        return got_stuck

    def frame(self, peer: Peer, state: WorkerState, now: float) -> None:
        """The state that rides in a Tokens frame."""
        worker = self.workers.get(peer.endpoint)
        if worker is not None:
            worker.heard = now
            worker.state = state

    def lost(self, endpoint: str, now: float) -> Worker | None:
        """Its process ended, or it is leaving."""
        misfit = self.misfits.pop(endpoint, None)
        worker = self.workers.pop(endpoint, None)
        if worker is not None:
            self.left += 1
            self.last_loss = now
            self.revision += 1
        if gone := worker or misfit:
            self._hear_misfits_again(gone.model)
        return worker

    def _hear_misfits_again(self, model: str) -> None:
        """Where nothing of their model is left to differ from, their next word is heard."""
        if not self.of(model):
            self.misfits = {at: one for at, one in self.misfits.items() if one.model != model}

    def hangs(self, endpoint: str, now: float) -> Worker:
        """A worker said nothing for too long."""
        worker = self.workers[endpoint]
        self.lost(endpoint, now)
        self.hanging[endpoint] = Hanging(worker)
        return worker

    def stood_still(self, endpoint: str, now: float) -> bool:
        """Has this worker said nothing for so long that its link, which broke, broke of it?"""
        worker = self.workers.get(endpoint)
        return worker is not None and now - worker.heard > STOOD_STILL * self._silence_seconds

    def unlinked(self, endpoint: str, now: float) -> bool:
        """A link broke. True: that of a worker which hangs; no news of it may come any more."""
        hung = self.hanging.get(endpoint)
        if hung is not None:
            hung.until = now + GONE_SECONDS
        return hung is not None

    def silent(self, now: float) -> list[str]:
        """Workers that said nothing for too long although their link stands: they hang."""
        limit = now - self._silence_seconds
        for endpoint in [one for one, misfit in self.misfits.items() if misfit.heard < limit]:
            del self.misfits[endpoint]
        for endpoint in [one for one, hung in self.hanging.items() if hung.until < now]:
            del self.hanging[endpoint]
        return [endpoint for endpoint, one in self.workers.items() if one.heard < limit]


def _difference(one: WorkerDescription, other: WorkerDescription) -> str:
    """The first field in which two workers of one model must not differ."""
    for name in Compatibility.__struct_fields__:
        mine, theirs = getattr(one.compatibility, name), getattr(other.compatibility, name)
        if mine != theirs:
            return f"{name} is {theirs!r}, the others' is {mine!r}"
    if one.page_slots != other.page_slots:
        return f"page_slots is {other.page_slots}, the others' is {one.page_slots}"
    return ""
