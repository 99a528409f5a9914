"""A cluster under a seed: production loops on faulty seams, and the invariants of every turn.

A turn is 10 ms of virtual time. A worker turns when something arrived, when its step ended, or at
the time it asked for itself, as its real loop does; nothing else wakes it.

After every turn of a worker:
- its pool's own check holds; no page has two writers, and none that is written is free
- nothing of a sequence changes and none of its pages changes hands under a step in flight
- no byte of a read lands in a page that was granted again, sealed or let go (`faulty_plane.py`)
- no loop raises, the router's inbox meets no fault, and no two workers say different tokens
- no lease runs out that its reader renewed
- no request is older than its deadline, and no worker finds that it leaks pages
"""

from dataclasses import dataclass

from msgspec import structs

from ..kvtransfer.holder import Lease
from ..kvtransfer.moves import Event, Moves
from ..protocol.messages import Compatibility, Role
from ..router.fleet import Fleet
from ..router.flow import Flow
from ..router.flow_numbers import FlowSettings
from ..router.inbox import Inbox
from .chance import Chance, Crashed, Violation
from .client import CheckedClient
from .cluster import ROUTER, SILENCE_SECONDS, TURN_SECONDS
from .conditions import Conditions
from .faulty_engine import FaultyEngine
from .faulty_plane import FaultyPlane, PlaneOdds
from .links import LinkMailbox, Links
from .memory import Memory
from .plane import SimulatedPlane
from .worker import COMPATIBILITY, Seams, Shape, Worker

TICK_SECONDS = 0.1  # of the router
TELLING_SECONDS = 1.0  # from being stuck to the end of the process
ROUNDING = 1e-6  # seconds
REST_SECONDS = 0.25  # the longest jump while nothing happens


class Member(Worker):
    """A worker of a schedule, with its faulty seams."""

    def __init__(self, seams: Seams, shape: Shape):
        super().__init__(seams, shape, [ROUTER])
        assert isinstance(seams.mailbox, LinkMailbox)
        assert isinstance(seams.plane, FaultyPlane) and isinstance(seams.engine, FaultyEngine)
        self.link, self.reads, self.steps = seams.mailbox, seams.plane, seams.engine
        self.reads.pool = self.steps.pool = self.pool
        self.due = 0.0  # when it asked to be turned again
        self.pace = 1  # it runs in every so many turns
        self.stuck_since = -1.0
        self._checked = -1  # the pool's revision
        self._leases: dict[int, Lease] = {}  # those of its last turn
        self._renewed: dict[int, float] = {}  # when each was last renewed

    @property
    def name(self) -> str:
        return self.mailbox.me.name

    @property
    def at_rest(self) -> bool:
        return not (self.engine.busy or self.reads.moving)

    def wants_turn(self, turn: int, now: float) -> bool:
        return now >= self.due or self.link.ready(turn) or self.steps.ready(turn)

    def check(self) -> None:
        """Every page has one owner."""
        if self.pool.revision == self._checked:
            return
        self._checked = self.pool.revision
        self.pool.check()
        self.one_writer()

    def check_leases(self, now: float) -> None:
        """No lease runs out while its reader lives and says so."""
        for lease_id, reader in self.link.renewed.items():
            lease = self.holder.leases.get(lease_id)
            if lease is not None and lease.reader == reader.endpoint:
                self._renewed[lease_id] = now
        self.link.renewed.clear()
        if self._leases.keys() == self.holder.leases.keys():
            return
        for lease_id, lease in self._leases.items():
            renewed = self._renewed.get(lease_id, now - self.shape.lease)
            if lease.ended_by is Event.EXPIRED and now - renewed < self.shape.lease - ROUNDING:
                raise Violation(f"lease {lease_id} ran out {now - renewed:.2f} s after a renewal")
        self._leases = dict(self.holder.leases)
        self._renewed = {one: at for one, at in self._renewed.items() if one in self._leases}


@dataclass(frozen=True, slots=True)
class Absent:
    """A process that is down, until a turn."""

    until: int
    name: str
    role: Role


class World:
    """Router, workers, links and planes of one schedule."""

    def __init__(self, chance: Chance, conditions: Conditions):
        self.chance, self.conditions = chance, conditions
        self.links = Links(chance)
        self.odds = PlaneOdds.draw(chance, conditions.checked)
        self.planes: dict[str, SimulatedPlane] = {}
        self.moves = Moves()
        self.now = 0.0
        self.members: dict[str, Member] = {}
        self.clients: list[CheckedClient] = []
        self.hung: dict[str, int] = {}  # until which turn
        self.absent: list[Absent] = []
        self._tick_at = 0.0
        self._routers = 0
        self._start_router()
        for role, count in conditions.layout.items():
            for index in range(count):
                self.start(f"{role}-{index}", role)

    # --- processes -----------------------------------------------------------------------------

    def start(self, name: str, role: Role, compatible: bool = True) -> Member:
        """A worker starts; an incompatible one holds another model."""
        conditions = self.conditions
        mailbox, memory = self.links.mailbox(name), Memory(conditions.pages)
        endpoint, cut = mailbox.me.endpoint, self.links.is_cut
        plane = FaultyPlane(self.chance, self.odds, memory, endpoint, self.planes, cut)
        seams = Seams(mailbox, memory, plane, FaultyEngine(self.chance, memory))
        kind = self._compatibility(compatible)
        self.members[name] = member = Member(seams, conditions.shape(role, kind, self.moves))
        return member

    def crash(self, name: str, back: int) -> None:
        """The process ends now; the supervisor starts it again in so many turns."""
        member = self.members.pop(name)
        member.reads.alive = False
        self.links.kill(member.mailbox)
        self.hung.pop(name, None)
        self.absent.append(Absent(self.chance.turn + back, name, member.shape.role))

    def revive(self, until: int) -> None:
        """Start those again that are due before that turn."""
        for one in [one for one in self.absent if one.until <= until]:
            self.absent.remove(one)
            self.start(one.name, one.role)

    def restart_router(self) -> None:
        """It knows nothing of what it was asked; its clients' connections are gone."""
        self.links.kill(self.mailbox)
        for client in self.clients:
            client.over = True
        self.hung.pop("router", None)
        self._start_router()

    def _start_router(self) -> None:
        conditions = self.conditions
        self.mailbox = self.links.mailbox("router")
        self.fleet = Fleet(SILENCE_SECONDS)
        settings = FlowSettings(
            conditions.local,
            conditions.failover,
            conditions.attempts,
            conditions.inquire,
            conditions.deadline,
            conditions.turn_tokens,
        )
        first_id = self._routers << 20
        self._routers += 1
        self.flow = Flow(self.mailbox, self.fleet, settings, lambda: self.now, first_id)
        self.inbox = Inbox(self.mailbox, self.fleet, self.flow)

    def _compatibility(self, compatible: bool) -> Compatibility:
        kind = structs.replace(COMPATIBILITY, checked=self.conditions.checked)
        return kind if compatible else structs.replace(kind, model="another model")

    # --- a turn --------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Nothing is under way anywhere."""
        return self.links.quiet and all(one.at_rest for one in self.members.values())

    @property
    def alive(self) -> list[CheckedClient]:
        return [client for client in self.clients if not client.over and not client.ended]

    def turn(self) -> None:
        self.chance.turn += 1
        self.now += self._step()
        turn = self.chance.turn
        for member in self.members.values():
            if member.reads.transfers:
                member.reads.move()
        for name, member in list(self.members.items()):
            if name not in self.hung and turn % member.pace == 0:
                self._turn_of(member)
        if "router" not in self.hung:
            self._turn_of_router()
        if self.hung:
            self.hung = {name: end for name, end in self.hung.items() if end > turn}

    def _step(self) -> float:
        if not (self.chance.calm and self.quiet):
            return TURN_SECONDS
        due = min((member.due for member in self.members.values()), default=self._tick_at)
        return max(TURN_SECONDS, min(REST_SECONDS, min(due, self._tick_at) - self.now))

    def _turn_of(self, member: Member) -> None:
        if not member.wants_turn(self.chance.turn, self.now):
            return
        try:
            member.due = member.worker.turn(self.now)
        except Crashed:
            self.chance.fault("crash between two words", member.name)
            self.crash(member.name, self.chance.rng.choice([0, 0, 3, 40]))
            return
        member.check()
        if member.shape.role == "prefill":
            member.check_leases(self.now)
        self._supervise(member)

    def _supervise(self, member: Member) -> None:
        """A process that is stuck says so, ends, and is started again."""
        if not member.worker.stuck:
            member.stuck_since = -1.0
        elif "nothing runs" in member.worker.stuck:
            raise Violation(f"{member.name} leaks: {member.worker.stuck}")
        elif member.stuck_since < 0:
            member.stuck_since = self.now
        elif self.now - member.stuck_since > TELLING_SECONDS:
            self.chance.note(f"STUCK {member.name}: {member.worker.stuck}")
            self.crash(member.name, 1)

    def _turn_of_router(self) -> None:
        if self.mailbox.ready(self.chance.turn):
            self.inbox.deliver(self.mailbox.receive(), self.now)
        if self.now >= self._tick_at:
            self._tick_at = self.now + TICK_SECONDS
            self.inbox.tick(self.now)
            self._none_overdue()
        self.flow.turn(self.now)
        if self.inbox.faults:
            raise Violation("the router's inbox met a fault")
        if self.flow.counters.differing:
            raise Violation("two workers said different tokens for one position")

    def _none_overdue(self) -> None:
        limit = self.conditions.deadline
        if not limit:
            return
        for client in self.alive:
            if self.now - client.asked > limit + TICK_SECONDS:
                raise Violation(f"request {client.request} goes on after its deadline of {limit} s")
