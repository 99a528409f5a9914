"""One soak against one running cluster: quiet sweep, traffic with faults, rest, quiet sweep.

Clients ask in a closed loop; faults come from a FaultPlan; a Watch looks from outside. Everything
that must not be is a Violation with what is needed to see how it came about.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..cluster import Cluster, split_address
from .answers import Answer
from .client import Reply, exchange, post
from .faults import SIGNALS, Fault, FaultPlan
from .judge import Excuses, Verdict, judge
from .requests import Asked, Case, asked
from .watch import LOOK_SECONDS, Clock, Standing, Watch, pids_of, standings

MARGIN_SECONDS = 1.0  # a look may be so late in seeing that somebody is away or back
PAUSE_SECONDS = 0.3  # after a refusal or a cut: asking at once again helps nobody
REST_SECONDS = 120.0  # after the last fault, until everything is back and nothing is held
MORE_DESCRIPTORS = 12  # of the links to two peers that it had not met before
EVENTS_SHOWN = 60  # of the chronicle, with a violation
ENDED = re.compile(r"^penstock: (\S+) ended \((.*)\); again", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a soak is made."""

    seed: int
    seconds: float  # of traffic with faults
    concurrency: int
    fault_seconds: float  # mean between two faults; 0 = no faults
    limit_seconds: float  # a request that takes longer hangs
    spared: frozenset[str] = frozenset()  # names of processes that are never ended


@dataclass(slots=True)
class Violation:
    """What must not be, and all that is known of it."""

    what: str
    at: float
    case: str = ""
    body: Any = None
    expected: Any = None
    got: Any = None
    events: list[tuple[float, str]] = field(default_factory=list)


@dataclass(slots=True)
class Ended:
    """One exchange, for the tables."""

    kind: str
    outcome: str
    asked_at: float
    seconds: float
    first_seconds: float
    during_fault: bool
    note: str = ""


@dataclass(slots=True)
class Outcome:
    """All that a soak found."""

    exchanges: list[Ended] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    before: dict[str, Standing] = field(default_factory=dict)
    after: dict[str, Standing] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    fullest: dict[str, float] = field(default_factory=dict)  # by role: share of pages held
    seconds: float = 0.0
    rest_seconds: float = 0.0  # from the last answer to nothing held, everybody back
    driver_cpu_seconds: float = 0.0


class Soak:
    """One soak. `run` once."""

    def __init__(
        self, plan: Plan, cluster: Cluster, cases: list[Case], expected: dict[int, Answer]
    ):
        self._plan = plan
        self._cluster = cluster
        self._cases = cases
        self._expected = expected
        self._address = split_address(cluster.url)
        self._clock = Clock()
        self._watch = Watch(cluster, self._address)
        self._going = True
        self._resuming: list[asyncio.Task[None]] = []
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """The whole of it; processes that were stopped go on afterwards, whatever happened."""
        outcome, plan = self.outcome, self._plan
        looking = asyncio.create_task(self._look())
        try:
            await self._until_rest("at the start")
            await self._sweep()
            await self._until_rest("after the first sweep")
            outcome.before = standings(self._cluster)
            begun = self._clock.now
            breaking = asyncio.create_task(self._break())
            clients = [asyncio.create_task(self._client(one)) for one in range(plan.concurrency)]
            await asyncio.sleep(plan.seconds)
            self._going = False
            await asyncio.gather(breaking, *clients)
            outcome.seconds = self._clock.now - begun
            outcome.rest_seconds = await self._until_rest("after the faults")
            await self._sweep()
            await self._until_rest("after the last sweep")
            outcome.after = standings(self._cluster)
        finally:
            looking.cancel()
            for name in self._watch.broken:
                self._signal(name, signal.SIGCONT)
        self._judge_processes()
        outcome.counters = self._watch.totals.sums
        outcome.fullest = self._watch.fullest
        outcome.driver_cpu_seconds = time.process_time()
        return outcome

    # --- asking ----------------------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        """One client: asks until told to stop; what a dying router cut is asked again."""
        chance = random.Random(f"{self._plan.seed} client {number}")
        while self._going:
            one = asked(chance.choice(self._cases), chance)
            verdict = await self._ask(one)
            while verdict.outcome == "cut" and not one.leaves:
                await asyncio.sleep(PAUSE_SECONDS)
                verdict = await self._ask(one)
            if verdict.outcome != "right":
                await asyncio.sleep(PAUSE_SECONDS)

    async def _sweep(self) -> None:
        """Every case once, while nothing breaks."""
        waiting = list(self._cases)

        async def line() -> None:
            while waiting:
                await self._ask(Asked(waiting.pop(), len(waiting) % 2 == 0, ""))

        await asyncio.gather(*(line() for _ in range(self._plan.concurrency)))

    async def _ask(self, one: Asked) -> Verdict:
        begun = self._clock.now
        reply = await exchange(
            self._address,
            post(one.case.path, one.body),
            self._plan.limit_seconds,
            one.leave_events,
            one.leave_seconds,
        )
        now = self._clock.now
        if reply.how == "cut":
            await asyncio.sleep(MARGIN_SECONDS)  # until it was seen why
        excuses = Excuses(
            self._watch.was_away(begun - MARGIN_SECONDS, now + MARGIN_SECONDS),
            self._watch.was_away(begun - MARGIN_SECONDS, now + MARGIN_SECONDS, {"router"}),
        )
        verdict = judge(one, self._expected[one.case.number], reply, excuses)
        self._keep(one, reply, verdict, begun)
        return verdict

    def _keep(self, one: Asked, reply: Reply, verdict: Verdict, begun: float) -> None:
        broken = any(begun < fault.at < begun + reply.seconds for fault in self.outcome.faults)
        note = verdict.problem if verdict.outcome in ("refused", "broken off") else ""
        took = (reply.seconds, reply.first_seconds)
        ended = Ended(one.case.kind, verdict.outcome, begun, *took, broken, note)
        self.outcome.exchanges.append(ended)
        if verdict.outcome == "right":
            for fault in self.outcome.faults:
                if fault.served < 0 and fault.at < begun:
                    fault.served = begun + reply.seconds
        if verdict.violation:
            how = "streamed" if one.stream else "whole"
            text = f"{verdict.outcome}: {one.case.name} ({how}): {verdict.problem}"
            wanted = self._expected[one.case.number]
            self._violated(text, one.case.name, one.body, wanted, verdict.got)

    def _violated(self, what: str, case: str = "", *more: Any) -> None:
        now = self._clock.now
        self._watch.note(now, f"VIOLATION {what}")
        events = list(self._watch.chronicle)[-EVENTS_SHOWN:]
        body, expected, got = more or (None, None, None)
        self.outcome.violations.append(Violation(what, now, case, body, expected, got, events))

    # --- breaking --------------------------------------------------------------------------------

    async def _break(self) -> None:
        if not self._plan.fault_seconds:
            return
        plan = FaultPlan(self._plan.seed, self._plan.fault_seconds, self._plan.spared)
        end = self._clock.now + self._plan.seconds
        while (now := self._clock.now) < end:
            await asyncio.sleep(min(plan.pause(), end - now))
            if not self._going:
                break
            await self._watch.count()  # what a process counted goes with it
            for fault in plan.next(self._watch.roles, self._watch.well, self._clock.now):
                self._make(fault)
        await asyncio.gather(*self._resuming)

    def _make(self, fault: Fault) -> None:
        pid = self._signal(fault.name, SIGNALS[fault.kind])
        if pid == 0:
            return
        self.outcome.faults.append(fault)
        self._watch.begun(fault, pid)
        if fault.kind == "stop":
            self._resuming.append(asyncio.create_task(self._resume(fault, pid)))

    async def _resume(self, fault: Fault, pid: int) -> None:
        await asyncio.sleep(fault.stopped_seconds)
        os.kill(pid, signal.SIGCONT)
        self._watch.note(self._clock.now, f"{fault.name} goes on")

    def _signal(self, name: str, number: signal.Signals) -> int:
        """The pid that got it; 0 = there is no such process now."""
        pid = pids_of(self._cluster).get(name, 0)
        try:
            if pid:
                os.kill(pid, number)
        except ProcessLookupError:
            return 0
        return pid

    # --- looking ---------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            await self._watch.look(self._clock)
            await asyncio.sleep(LOOK_SECONDS)

    async def _until_rest(self, when: str) -> float:
        """Seconds until everybody is there and nothing is held."""
        begun = self._clock.now
        held: dict[str, float] = {}
        while self._clock.now - begun < REST_SECONDS:
            await self._watch.look(self._clock)
            page = await self._watch.count()
            held = self._watch.held(page)
            if page and not held and self._watch.whole():
                return self._clock.now - begun
            await asyncio.sleep(LOOK_SECONDS)
        missing = sorted(set(self._watch.roles) - self._watch.well)
        reasons = self._watch.health.get("reasons")
        self._violated(f"no rest {when}: held {held}, missing {missing}, /health says {reasons}")
        return REST_SECONDS

    def _judge_processes(self) -> None:
        """Nobody ended, broke a rule or was stuck of its own accord."""
        log = self._cluster.whole_log()
        ours = Counter(one.name for one in self.outcome.faults if one.kind != "stop")
        for name, reason in ENDED.findall(log):
            ours[name] -= 1
            if ours[name] < 0:
                self._violated(f"ENDED: {name} ended by itself: {reason}")
        for line in sorted(self._watch.stuck):
            self._violated(f"STUCK: {line}")
        for name, before in self.outcome.before.items():
            after = self.outcome.after.get(name)
            if after is None or after.descriptors > before.descriptors + MORE_DESCRIPTORS:
                self._violated(f"LEAK: {name} has {after}, it began with {before}")
        if "Traceback" in log:
            self._violated("LOG: there is a traceback in the log")
        if alarms := self._watch.totals.of("penstock_alarms_total"):
            self._violated(f"ALARM: {alarms:.0f} tokens were said twice and differed")
