"""One hand-over on its way into a worker, and what the worker can give to it. Pure."""

from dataclasses import dataclass, field

from ..protocol.messages import FirstTokens, Handoff, Peer
from ..protocol.pages import PagePool
from .columns import Columns
from .moves import Event, ReadState


@dataclass(frozen=True, slots=True)
class OpenRead:
    """Blocks start..end on their way; given up after `limit`. Times are the reader's own."""

    start: int
    end: int
    size: int  # bytes
    posted: float
    limit: float


NO_PAGES = memoryview(b"").cast("i")


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
    content: bytes  # these, and the hash of the partial block behind them: what must be said
    total: int  # blocks of the whole prompt, a partial tail included
    state: ReadState = ReadState.WAITING
    pages: list[int] = field(default_factory=list)  # ours, one per block
    local: memoryview = NO_PAGES  # the same as int32
    skipped: int = 0
    asked: int = 0
    said: Columns = field(default_factory=Columns)  # what the holder says of the known blocks
    vetted: int = 0  # blocks before this are this prompt's, as said
    reads: dict[int, OpenRead] = field(default_factory=dict)  # by ticket
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


class Movement:
    """When a page of the pool was last seen to move: who waits for pages behind others that go on
    waits in a queue, however long, and is not stuck."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._revision = -1
        self._last = float("-inf")

    def stood(self, since: float, now: float) -> float:
        """For how many seconds, since that time, none has moved. Ask in every turn that waits."""
        if self._pool.revision != self._revision:
            self._revision, self._last = self._pool.revision, now
        return now - max(since, self._last)


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Times in seconds. `renew_every` must be well under the holder's lease_seconds."""

    page_slots: int
    page_bytes: int
    renew_every: float = 2.5
    read_seconds: float = 2.0  # a read may take so long, and twice what is predicted
    waiting_seconds: float = 60.0  # for pages, while none of the pool moves
    vocabulary: int = 1 << 31  # token ids are below this
    silence_seconds: float = 150.0  # of a holder; more than a worker gives one step of its engine
