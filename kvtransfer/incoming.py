"""One hand-over on its way into a worker, and what the worker can give to it. Pure."""

from dataclasses import dataclass, field
from enum import Enum

from ..protocol.messages import FirstTokens, Handoff, Peer, Published
from .moves import Event, ReadState

SLOWEST_BYTES_PER_SECOND = 50e6  # a read slower than this is given up


class Way(Enum):
    """What is known of the way to a holder."""

    INTRODUCED = "introduced"
    OPEN = "open"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Incoming:
    """One hand-over on its way in.

    blocks   [ 0 .... skipped ............ asked ........ known ....... total )
               held here  read or on its way  published     to come
    """

    handoff: Handoff
    holder: Peer
    arrived: float
    hashes: list[bytes]  # of the prompt's full blocks
    total: int  # blocks of the whole prompt, a partial tail included
    state: ReadState = ReadState.WAITING
    pages: list[int] = field(default_factory=list)  # ours, one per block
    skipped: int = 0
    asked: int = 0
    remote_pages: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    reads: dict[int, tuple[int, int, float]] = field(default_factory=dict)  # ticket: from,to,by
    first_tokens: FirstTokens | None = None
    reserved: float = 0.0
    progressed: float = 0.0  # when something last came of it
    last_published: float = 0.0
    completed: float = 0.0
    bytes_read: int = 0

    @property
    def pool_holder(self) -> tuple[str, str, int]:
        return ("incoming", self.holder.endpoint, self.handoff.lease)

    @property
    def exposed_seconds(self) -> float:
        """What the hand-over cost after the prompt was computed and pages were there."""
        return self.completed - max(self.last_published, self.reserved)

    @property
    def all_read(self) -> bool:
        return self.first_tokens is not None and self.asked == self.total and not self.reads


@dataclass(frozen=True, slots=True)
class Lost:
    """A hand-over that ended without its sequence; the router places the request again."""

    handoff: Handoff
    event: Event
    reason: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the worker can give to hand-overs in this turn."""

    sequences: int  # that may still join the batch
    headroom: int = 0  # pages to leave free for the growth of what runs
    before: float = float("inf")  # only hand-overs that arrived before this: others are older


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Times in seconds. `renew_every` must be well under the holder's lease_seconds."""

    page_slots: int
    page_bytes: int
    renew_every: float = 2.5
    read_seconds: float = 10.0
    waiting_seconds: float = 60.0


def well_formed(message: Published) -> bool:
    """Do the lists of one publication belong together?"""
    first = message.first_tokens
    if first is not None:
        columns = (first.choices, first.token_ids, first.finish, first.logprobs)
        if len({len(column) for column in columns}) > 1:
            return False
    return len(message.pages) == len(message.generations)
