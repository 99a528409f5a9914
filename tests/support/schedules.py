"""Seeded random schedules over the production worker loops and router flow, on fakes.

    cd tests
    python -m support.schedules --level 0 --seed 17              one schedule again, with its log
    python -m support.schedules --level 1 --seed 0 --count 1000  many, with what was found

A schedule is drawn from its seed alone: a cluster, requests, and what goes wrong meanwhile. Then
all is calm, every request must end, and nothing may be left behind.

Levels (the second includes the first):
  0  what the Transport seam promises: order per link, delays, one-way breaks that the sender is
     told of; kills and restarts of workers and router, hangs, held engines and planes, failed
     steps, reads that fail, are stale or land late, long stalls, cancels and stopped choices
  1  words that arrive twice, the second time late

Invariants:
  - each client is given the right tokens, once, in order, ends exactly once, and is not called
    afterwards; no request fails, and no two workers differ
  - no loop raises, and the router's inbox meets no fault
  - nothing of a sequence changes and none of its pages changes hands under a step in flight
  - no read lands in a page that was granted again or sealed; the pool's own check holds each turn
  - in the end no request hangs, and nothing is held, quarantined, open or remembered anywhere
"""

import argparse
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

from penstock.decode.scheduler import DecodeScheduler
from penstock.prefill.scheduler import PrefillScheduler
from penstock.prefill.worker import PrefillWorker
from penstock.protocol.messages import Role, Sampling
from penstock.router.fleet import Fleet
from penstock.router.flow import Flow
from penstock.router.flow_numbers import FlowSettings
from penstock.router.inbox import Inbox
from penstock.router.placement import InFlight
from penstock.router.request import Refusal, Submission

from . import cluster
from .cluster import ROUTER, Cluster, Worker
from .fakes import SLOTS, true_tokens
from .schedules_network import Chance, Links
from .schedules_parts import Question, RandomClient, RandomEngine, RandomPlane, Violation

LAYOUTS = [
    dict(prefill=1, decode=1),
    dict(prefill=1, decode=1),
    dict(prefill=2, decode=2),
    dict(prefill=1, decode=2),
    dict(prefill=2, decode=1),
    dict(prefill=0, decode=0, aggregated=1),
    dict(prefill=0, decode=0, aggregated=2),
    dict(prefill=1, decode=1, aggregated=1),
]
NEVER = 10**9  # seconds or attempts: in a schedule no request is given up
MOST_CLIENTS = 40
TURNS_TO_END = 6000
TURNS_TO_SETTLE = 800  # leases of lost words run out


class Member(Worker):
    """A worker of a schedule."""

    def __init__(self, schedule: "Schedule", name: str, role: Role):
        super().__init__(schedule, name, role, schedule.pages, schedule.chunk)
        self.role: Role = role
        assert isinstance(self.plane, RandomPlane) and isinstance(self.engine, RandomEngine)
        self.reads = self.plane
        self.plane.pool = self.engine.pool = self.pool

    @property
    def at_rest(self) -> bool:
        return not (self.engine.busy or self.reads.reads or self.reads.late)

    def left_behind(self) -> Iterator[tuple[str, int]]:
        """Everything that must be empty when no request is in flight."""
        yield "held pages", self.pool.held
        yield "quarantined pages", self.pool.quarantined
        yield "holders", len(self.pool._held)
        yield "arriving reads", len(self.pool._arriving)
        yield "waiting", len(self.scheduler.waiting)
        if isinstance(self.scheduler, PrefillScheduler):
            assert isinstance(self.worker, PrefillWorker)
            yield "started", len(self.scheduler.started)
            yield "leases", len(self.holder.leases) + len(self.worker._leases)
        if isinstance(self.scheduler, DecodeScheduler):
            yield "running", len(self.scheduler.running) + len(self.scheduler.filling)
            yield "incoming", len(self.reader.incoming)
            yield "reads", len(self.reader._by_ticket) + len(self.reader._unquiet)


class Schedule(Cluster):
    """One random schedule. Made by `play`, which puts the random parts in the cluster's place."""

    def __init__(self, chance: Chance):
        rng = chance.rng
        self.chance, self.rng = chance, rng
        self.pages = rng.choice([8, 12, 16, 24, 40, 64])
        self.chunk = rng.choice([1, 4, 8, 32, 1000])
        self.local = rng.choice([0, 0, 8, 10**6])
        self.clients: list[RandomClient] = []
        self.hung: dict[str, int] = {}  # until which turn
        self.dead: list[tuple[int, str, Role]] = []  # from which turn on it lives again
        self.routers = 0
        limits = dict(failover_seconds=NEVER, max_attempts=NEVER)
        super().__init__(**rng.choice(LAYOUTS), local=self.local, **limits)
        self.run(4)

    @property
    def links(self) -> Links:
        assert isinstance(self.network, Links)
        return self.network

    @property
    def members(self) -> list[Member]:
        return [one for one in self.workers.values() if isinstance(one, Member)]

    @property
    def alive(self) -> list[RandomClient]:
        return [client for client in self.clients if not client.over and not client.ended]

    def start(self, name: str, role: Role, pages: int = 0, chunk: int = 0) -> Worker:
        """Sizes are the schedule's, whatever the cluster thinks."""
        self.workers[name] = Member(self, name, role)
        return self.workers[name]

    def turn(self) -> None:
        self.chance.turn += 1
        rest = self.chance.calm and self.links.quiet and all(one.at_rest for one in self.members)
        self.now += 0.25 if rest else 0.01
        for name, worker in list(self.workers.items()):
            if name not in self.hung:
                worker.worker.turn(self.now)
                worker.pool.check()
        if "router" not in self.hung:
            self.inbox.deliver(self.mailbox.receive(), self.now)
            self.inbox.tick(self.now)
        if self.inbox.faults:
            raise Violation("the router's inbox met a fault")
        self.hung = {name: end for name, end in self.hung.items() if end > self.chance.turn}

    def play(self) -> None:
        self._storm()
        self._calm()
        for client in self.clients:
            client.judge(self.pages * SLOTS)
        if self.flow.counters.differing:
            raise Violation("two workers said different tokens for one position")

    def _storm(self) -> None:
        rng = self.rng
        self.chance.calm = False
        faults, questions = rng.choice([0.01, 0.03, 0.08, 0.2]), rng.choice([0.05, 0.15, 0.4])
        for _ in range(rng.choice([60, 150, 400])):
            if rng.random() < questions and len(self.clients) < MOST_CLIENTS:
                self._ask()
            if rng.random() < faults:
                self._fault()
            self._revive(self.chance.turn)
            self.turn()

    def _calm(self) -> None:
        """Nothing bad happens any more: everything must come to its end."""
        self.chance.calm = True
        self.hung.clear()
        self._revive(NEVER)
        for member in self.members:
            member.engine.hold = member.plane.hold = False
        for _ in range(TURNS_TO_END):
            if not self.flow.in_flight and self.links.quiet:
                break
            self.turn()
        if self.flow.in_flight:
            raise Violation("hung: " + "; ".join(map(_describe, self.flow.in_flight.values())))
        for _ in range(TURNS_TO_SETTLE):
            if self.links.quiet and not self._left_behind():
                return
            self.turn()
        raise Violation("left behind: " + ", ".join(self._left_behind()))

    def _left_behind(self) -> list[str]:
        left = [
            f"{member.mailbox.me.name} {count} {what}"
            for member in self.members
            for what, count in [*member.left_behind(), ("busy", int(not member.at_rest))]
            if count
        ]
        booked = [one for one in self.fleet.workers.values() if one.bookings]
        return left + [f"router {len(one.bookings)} bookings" for one in booked]

    # --- requests ------------------------------------------------------------------------------

    def _ask(self) -> None:
        client = RandomClient(self._question())
        if self.rng.random() < 0.1:
            self._let_answer(client, self.rng.randint(1, 4), self.rng.choice([True, False]))
        asked = client.question
        submission = Submission("model", asked.prompt, asked.choices, asked.sampling, asked.salt)
        try:
            client.request = self.flow.submit(submission, client)
        except Refusal:
            return
        self.clients.append(client)
        self.chance.note(f"SUBMIT {client.request} {asked}")

    def _question(self) -> Question:
        rng, most = self.rng, self.pages * SLOTS
        length = min(most, rng.choice([1, 3, 4, 5, 8, 13, 20, 27]))
        if rng.random() < 0.05:
            length = most - rng.randint(0, 2)
        first = rng.choice([0, 0, 100])
        prompt = list(range(first, first + length))
        if rng.random() < 0.3:
            prompt[-1] = rng.randint(500, 900)
        choices, seed = rng.choice([1, 1, 1, 2, 3, 5]), rng.randint(0, 3)
        stops: tuple[int, ...] = ()
        if rng.random() < 0.25:
            stops = (true_tokens(prompt, seed, rng.randrange(choices), 6)[rng.choice([0, 0, 3])],)
        sampling = Sampling(
            seed,
            max_tokens=rng.choice([0, 1, 2, 5, 12, 40]),
            stop_token_ids=stops,
            logprobs=1 if rng.random() < 0.3 else -1,
            prompt_logprobs=1 if rng.random() < 0.15 else -1,
        )
        return Question(prompt, choices, sampling, rng.choice(["", "", "b"]))

    def _let_answer(self, client: RandomClient, count: int, stops: bool) -> None:
        """After so many tokens of a choice it stops that choice, or cancels, within the call."""

        def answer(choice: int) -> None:
            if len(client.tokens[choice]) == count and not client.finish[choice]:
                if stops:
                    self._stop(client, choice)
                else:
                    client.over = True
                    self.flow.cancel(client.request)

        client.after_token = answer

    def _stop(self, client: RandomClient, choice: int) -> None:
        if not client.finish[choice]:
            client.stopped.add(choice)
            client.finish[choice] = "string"
            self.flow.stop_choice(client.request, choice)

    # --- what may go wrong ---------------------------------------------------------------------

    def _fault(self) -> None:
        faults: dict[Callable[[], None], int] = {
            self._cancel_one: 22,
            self._stop_one: 13,
            self._kill_one: 15,
            self._break_one: 15,
            self._hold_engine: 10,
            self._hold_plane: 10,
            self._hang_one: 8,
            self._restart_router: 3,
            self._stall: 4,
        }
        (fault,) = self.rng.choices(list(faults), list(faults.values()))
        fault()

    def _cancel_one(self) -> None:
        if self.alive:
            client = self.rng.choice(self.alive)
            self.chance.note(f"CANCEL {client.request}")
            client.over = True
            self.flow.cancel(client.request)

    def _stop_one(self) -> None:
        if self.alive:
            client = self.rng.choice(self.alive)
            choice = self.rng.randrange(client.question.choices)
            self.chance.note(f"STOP {client.request}.{choice}")
            self._stop(client, choice)

    def _kill_one(self) -> None:
        if self.members:
            member = self.rng.choice(self.members)
            name = member.mailbox.me.name
            self.chance.note(f"KILL {name}")
            member.reads.alive = False
            self.kill(name)
            self.hung.pop(name, None)
            back = self.chance.turn + self.rng.choice([0, 0, 3, 40])
            self.dead.append((back, name, member.role))

    def _break_one(self) -> None:
        ends = [*self.links.ends]
        self.links.break_link(self.rng.choice(ends), self.rng.choice(ends))

    def _hold_engine(self) -> None:
        if self.members:
            engine = self.rng.choice(self.members).engine
            engine.hold = not engine.hold

    def _hold_plane(self) -> None:
        if self.members:
            plane = self.rng.choice(self.members).plane
            plane.hold = not plane.hold

    def _hang_one(self) -> None:
        name = self.rng.choice([*self.workers, "router"])
        self.chance.note(f"HANG {name}")
        longest = 50 if name == "router" else 700
        self.hung[name] = self.chance.turn + self.rng.choice([5, 50, longest])

    def _stall(self) -> None:
        self.chance.note("STALL")
        self.now += 11.0  # leases and deadlines run out

    def _restart_router(self) -> None:
        self.chance.note("ROUTER RESTARTS")
        self.network.kill(self.mailbox)
        self.routers += 1
        for client in self.clients:
            client.over = True
        self.hung.pop("router", None)
        self.mailbox = self.network.mailbox(ROUTER.removeprefix("fake://"))
        self.fleet = Fleet(5.0)
        settings = FlowSettings(self.local, NEVER, NEVER)
        first_id = self.routers << 20
        self.flow = Flow(self.mailbox, self.fleet, settings, lambda: self.now, first_id)
        self.inbox = Inbox(self.mailbox, self.fleet, self.flow)

    def _revive(self, turn: int) -> None:
        for item in [one for one in self.dead if one[0] <= turn]:
            self.dead.remove(item)
            self.start(item[1], item[2])


def _describe(flight: InFlight) -> str:
    placed = [
        f"{one.attempt} {one.phase.value} {one.route.prefill} -> {one.route.decode}"
        for one in flight.placements.values()
    ]
    return f"request {flight.id} reported={flight.reported} {placed} unplaced={flight.unplaced}"


def play(level: int, seed: int, chance: Chance | None = None) -> None:
    """One schedule. Whatever it raises is a finding, and says how to play it again."""
    chance = chance or Chance(seed, level, random.Random(seed))
    seams: dict[str, Any] = dict(
        Network=partial(Links, chance),
        FakePlane=partial(RandomPlane, chance),
        FakeEngine=partial(RandomEngine, chance),
    )
    try:
        with patch.multiple(cluster, **seams):
            Schedule(chance).play()
    except Exception as error:
        error.add_note(f"cd tests; python -m support.schedules --level {level} --seed {seed}")
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m support.schedules")
    parser.add_argument("--level", type=int, choices=[0, 1], default=0)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=1, help="how many; the log is shown for one")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = 0
    for seed in range(options.seed, options.seed + options.count):
        chance = Chance(seed, options.level, random.Random(seed))
        try:
            play(options.level, seed, chance)
        except Exception as error:
            found += 1
            print(f"seed {seed}: {type(error).__name__} {str(error)[:300]}")
            if options.count == 1:
                traceback.print_exc()
        if options.count == 1:
            print(*chance.log, sep="\n")
    print(f"level {options.level}: {options.count} schedules, {found} findings")


if __name__ == "__main__":
    main()
