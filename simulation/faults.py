"""What may go wrong in a schedule, one thing at a time. Each is counted by its kind."""

from collections.abc import Callable

from .links import Forgery, LinkMailbox
from .memory import SLOTS
from .traffic import Traffic
from .world import Member, World

STALL_SECONDS = 11.0  # leases and deadlines run out


class Faults:
    """Draws a fault and lets it happen."""

    def __init__(self, world: World, traffic: Traffic):
        self._world, self._traffic = world, traffic
        self._chance, self._rng = world.chance, world.chance.rng
        self._weights: dict[Callable[[], None], int] = {
            self._cancel: 20,
            self._stop: 12,
            self._crash: 12,
            self._light_a_fuse: 8,
            self._break_link: 12,
            self._cut_one_way: 8,
            self._part_two_nodes: 6,
            self._hold_engine: 8,
            self._hold_plane: 6,
            self._hang: 8,
            self._slow_down: 6,
            self._burst: 5,
            self._restart_router: 3,
            self._stall: 6,
            self._another_model: 7,
            self._confuse: 12,
        }

    def one(self) -> None:
        (fault,) = self._rng.choices(list(self._weights), list(self._weights.values()))
        fault()

    def calm(self) -> None:
        """Whatever lasts, ends."""
        world = self._world
        world.hung.clear()
        world.links.heal()
        world.mailbox.fuse = None
        for member in list(world.members.values()):
            member.pace, member.link.fuse = 1, None
            member.engine.hold = member.plane.hold = False
            if member.shape.compatibility.model != "model":
                world.crash(member.name, 0)
        world.revive(1 << 60)

    def _any(self) -> Member | None:
        members = list(self._world.members.values())
        return self._rng.choice(members) if members else None

    # --- clients -------------------------------------------------------------------------------

    def _cancel(self) -> None:
        if alive := self._world.alive:
            client = self._rng.choice(alive)
            self._chance.fault("cancel", client.request)
            self._traffic.cancel(client)

    def _stop(self) -> None:
        if alive := self._world.alive:
            client = self._rng.choice(alive)
            choice = self._rng.randrange(client.question.choices)
            self._chance.fault("choice stopped", f"{client.request}.{choice}")
            self._traffic.stop(client, choice)

    def _burst(self) -> None:
        """More than the pools hold, at once."""
        self._chance.fault("burst of requests")
        for _ in range(self._rng.randint(4, 10)):
            self._traffic.ask()

    def _ask_some(self) -> None:
        for _ in range(self._rng.choice([0, 2, 4])):
            self._traffic.ask()

    # --- processes -----------------------------------------------------------------------------

    def _crash(self) -> None:
        if member := self._any():
            back = self._rng.choice([0, 0, 3, 40])
            self._chance.fault("restart at once" if back == 0 else "crash", member.name)
            self._world.crash(member.name, back)

    def _light_a_fuse(self) -> None:
        """It crashes while it speaks, some words from now."""
        if member := self._any():
            member.link.fuse = self._rng.randint(0, 6)

    def _another_model(self) -> None:
        """A rolling change: its endpoint is taken by a worker that does not fit."""
        members = list(self._world.members.values())
        readers = [one for one in members if one.shape.role == "decode"]
        if member := self._rng.choice(readers) if readers else self._any():
            name, role = member.name, member.shape.role
            self._chance.fault("incompatible worker", name)
            self._ask_some()  # which are handed to it before the router knows
            self._world.crash(name, 0)
            self._world.absent.pop()
            self._world.start(name, role, compatible=False)

    def _hang(self) -> None:
        name = self._rng.choice([*self._world.members, "router"])
        longest = 50 if name == "router" else 700
        self._chance.fault("hang", name)
        self._world.hung[name] = self._chance.turn + self._rng.choice([5, 50, longest])

    def _slow_down(self) -> None:
        if member := self._any():
            self._chance.fault("slow node", member.name)
            member.pace = self._rng.choice([1, 3, 10, 40])

    def _restart_router(self) -> None:
        self._chance.fault("router restart")
        self._world.restart_router()

    def _stall(self) -> None:
        """The clock of all goes on while nobody runs."""
        self._chance.fault("clock stall")
        self._world.now += STALL_SECONDS
        self._ask_some()

    def _hold_engine(self) -> None:
        if member := self._any():
            member.engine.hold = not member.engine.hold
            if member.engine.hold:
                self._chance.fault("engine held", member.name)

    def _hold_plane(self) -> None:
        if member := self._any():
            member.plane.hold = not member.plane.hold
            if member.plane.hold:
                self._chance.fault("plane held", member.name)

    def _confuse(self) -> None:
        """A holder takes a page of other content for one of the blocks it will publish."""
        leases = [
            (member, lease)
            for member in self._world.members.values()
            if member.shape.role == "prefill"
            for lease in member.holder.leases.values()
            if lease.published < len(lease.prefill.token_ids) // SLOTS
        ]
        if not leases:
            return
        member, lease = self._rng.choice(leases)
        if not (sealed := [*member.pool._blocks.pages.values()]):
            return
        block = self._rng.randrange(lease.published, len(lease.prefill.token_ids) // SLOTS)
        page = self._rng.choice(sealed)
        pool, digests = member.pool, member.digests
        self._chance.fault("confused holder", f"{member.name} lease {lease.id} block {block}")
        self._world.links.forged[lease.id] = Forgery(
            block,
            page,
            pool.generation(page),
            pool.content(page),
            [] if digests is None else [digests.of(page)],
        )

    # --- links ---------------------------------------------------------------------------------

    def _two_ends(self) -> tuple[LinkMailbox, LinkMailbox] | None:
        ends = list(self._world.links.ends.values())
        if len(ends) < 2:
            return None
        one, other = self._rng.sample(ends, 2)
        return one, other

    def _break_link(self) -> None:
        if ends := self._two_ends():
            one, other = ends[0].me.endpoint, ends[1].me.endpoint
            if self._world.links.break_link(one, other):
                self._chance.fault("link lost", f"{one} -> {other}")

    def _cut_one_way(self) -> None:
        if ends := self._two_ends():
            one, other = ends[0].me.endpoint, ends[1].me.endpoint
            self._chance.fault("one-way partition", f"{one} -> {other}")
            self._world.links.cut(one, other, self._until())

    def _part_two_nodes(self) -> None:
        if ends := self._two_ends():
            one, other = ends[0].me.endpoint, ends[1].me.endpoint
            self._chance.fault("partition", f"{one} <-> {other}")
            until = self._until()
            self._world.links.cut(one, other, until)
            self._world.links.cut(other, one, until)

    def _until(self) -> int:
        return self._chance.turn + self._rng.choice([5, 30, 150, 600])
