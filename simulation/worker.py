"""One simulated worker: the production loop of its role, put together on simulated seams. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..decode.scheduler import DecodeScheduler
from ..decode.worker import DecodeWorker
from ..decode.worker import Parts as DecodeParts
from ..engine.chunking import Blocks
from ..engine.health import Pulse
from ..kvtransfer.digests import DigestQueue
from ..kvtransfer.holder import Holder
from ..kvtransfer.incoming import ReaderSettings
from ..kvtransfer.moves import Moves
from ..kvtransfer.reader import Reader
from ..prefill.scheduler import PrefillScheduler
from ..prefill.worker import Parts as PrefillParts
from ..prefill.worker import PrefillWorker
from ..protocol.loop import Gaps
from ..protocol.membership import Membership
from ..protocol.messages import REVISION, Compatibility, Role, WorkerDescription
from ..protocol.pages import PagePool, PageState
from .chance import Violation
from .engine import VOCABULARY, SimulatedEngine
from .memory import PAGE_BYTES, SLOTS, Memory, MemoryDigests
from .network import Mailbox
from .plane import SimulatedPlane

COMPATIBILITY = Compatibility(
    REVISION, "model", "class", "int32", "layout", PAGE_BYTES, "simulated"
)
MAX_BATCH = 64
BEAT_SECONDS = 0.25
STEP_LIMIT_SECONDS = 60.0
QUARANTINE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Seams:
    """What stands in for the machine."""

    mailbox: Mailbox
    memory: Memory
    plane: SimulatedPlane
    engine: SimulatedEngine


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of worker, and its times in seconds."""

    role: Role
    chunk: int
    compatibility: Compatibility = COMPATIBILITY
    lease: float = 10.0
    renew_every: float = 2.5
    read: float = 10.0
    waiting: float = 60.0
    moves: Moves | None = None  # shared by all workers, where their rows are counted together


class Worker:
    """One worker with its seams in reach. A prefill worker has a `holder`, others a `reader`."""

    holder: Holder
    reader: Reader

    def __init__(self, seams: Seams, shape: Shape, routers: list[str]):
        self.mailbox, self.memory = seams.mailbox, seams.memory
        self.plane, self.engine = seams.plane, seams.engine
        self.shape = shape
        self.pool = PagePool(self.memory.generations)
        self.blocks = Blocks(self.pool, shape.compatibility, SLOTS)
        self.digests = MemoryDigests(self.memory) if shape.compatibility.checked else None
        pages = self.memory.page_count
        self.context = pages * SLOTS
        description = WorkerDescription(
            shape.role, "model", shape.compatibility, SLOTS, pages, self.context, "none", "none", 1
        )
        self.membership = Membership(self.mailbox, routers, description, self.pool, BEAT_SECONDS)
        self.pulse = Pulse(STEP_LIMIT_SECONDS, QUARANTINE_SHARE, Gaps())
        self.scheduler: PrefillScheduler | DecodeScheduler
        self.worker: PrefillWorker | DecodeWorker
        if shape.role == "prefill":
            self._become_prefill()
        else:
            self._become_decode()

    def _become_prefill(self) -> None:
        shape = self.shape
        self.holder = Holder(
            self.pool,
            self.mailbox,
            self.plane,
            shape.compatibility,
            shape.lease,
            shape.moves,
            self.digests,
        )
        self.scheduler = PrefillScheduler(self.blocks, shape.chunk, self.memory.page_count // 2)
        self.worker = PrefillWorker(
            PrefillParts(
                self.mailbox,
                self.plane,
                self.engine,
                self.blocks,
                self.scheduler,
                self.holder,
                self.membership,
                self.pulse,
                self.context,
                VOCABULARY,
            )
        )

    def _become_decode(self) -> None:
        shape = self.shape
        settings = ReaderSettings(
            SLOTS,
            PAGE_BYTES,
            shape.renew_every,
            shape.read,
            shape.waiting,
            VOCABULARY,
            silence_seconds=shape.waiting,
        )
        self.reader = Reader(
            self.pool,
            self.mailbox,
            self.plane,
            shape.compatibility,
            settings,
            shape.moves,
            self.digests,
        )
        self.scheduler = DecodeScheduler(self.blocks, shape.chunk, MAX_BATCH)
        self.worker = DecodeWorker(
            DecodeParts(
                self.mailbox,
                self.reader,
                self.engine,
                self.blocks,
                self.scheduler,
                self.membership,
                self.pulse,
                self.context,
                VOCABULARY,
            )
        )

    @property
    def preemptions(self) -> int:
        assert isinstance(self.scheduler, DecodeScheduler)
        return self.scheduler.preemptions

    def one_writer(self) -> None:
        """Every page is written by at most one sequence or hand-over, and it is theirs to write.

        Told from those who write, not from the pool's own books.
        """
        writers: dict[int, object] = {}
        for owner, pages in self._writers():
            for page in pages:
                if page in writers:
                    raise Violation(f"page {page} is written by {writers[page]} and {owner}")
                writers[page] = owner
                if self.pool.state(page) not in (PageState.OPEN, PageState.SEALED):
                    state = self.pool.state(page).value
                    raise Violation(f"page {page} is {state}, and {owner} writes it")

    def _writers(self) -> Iterator[tuple[object, list[int]]]:
        if isinstance(self.scheduler, PrefillScheduler):
            sequences = self.scheduler.started
        else:
            sequences = [*self.scheduler.running, *self.scheduler.filling]
            for incoming in self.reader.incoming.values():
                yield incoming.pool_holder, incoming.pages[incoming.skipped :]
        for sequence in sequences:
            yield sequence.holder, sequence.pages[sequence.sealed :]

    def left_behind(self) -> Iterator[tuple[str, int]]:
        """Everything that must be empty when no request is in flight."""
        yield "held pages", self.pool.held
        yield "quarantined pages", self.pool.quarantined
        yield "holders", len(self.pool._held)
        yield "arriving reads", len(self.pool._arriving)
        yield "waiting sequences", len(self.scheduler.waiting)
        yield "open reads", len(self.plane.open)
        if isinstance(self.scheduler, PrefillScheduler):
            assert isinstance(self.worker, PrefillWorker)
            yield "started sequences", len(self.scheduler.started)
            yield "leases", len(self.holder.leases) + len(self.worker._leases)
            yield "blocks to be digested", _waiting(self.holder._undigested)
        else:
            yield "running", len(self.scheduler.running) + len(self.scheduler.filling)
            yield "incoming", len(self.reader.incoming)
            yield "reads", len(self.reader._by_ticket) + len(self.reader._unquiet)
            paces = self.reader._paces._paces.values()
            yield "bytes asked for", sum(pace.outstanding for pace in paces)
            yield "blocks to be digested", _waiting(self.reader._unchecked)


def _waiting(queue: DigestQueue | None) -> int:
    return len(queue._waiting) if queue is not None else 0
