"""What is seen of a cluster from outside while it is broken: /health, /metrics, its processes.

`Watch` keeps a chronicle with times, the stretches in which a role (or the router) was away, and
counters that go on where a process began anew.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..accounting import MIB, memory
from ..cluster import Cluster, series
from .client import exchange, get
from .faults import Fault

LOOK_SECONDS = 0.2  # between two looks at /health
COUNT_EVERY = 8  # looks at /health for one at /metrics
ANSWER_SECONDS = 3.0  # a router that does not answer within it is away
CHRONICLE = 400  # events kept
UNSEEN_SECONDS = 10.0  # an end that no look noticed is over by then
ROUTER = "router"
STATES = ("running", "waiting", "held_pages", "quarantined_pages", "leases", "pulling")


@dataclass(slots=True)
class Away:
    """From when to when nobody of a role could take work; `to` is infinite while it lasts."""

    role: str
    since: float
    to: float = float("inf")


@dataclass(slots=True)
class Totals:
    """Counters over the lives of the processes that count: a fall means a new process."""

    last: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, page: dict[str, float]) -> None:
        for name, value in page.items():
            before = self.last.get(name, 0.0)
            grown = value - before if value >= before else value
            self.sums[name] = self.sums.get(name, 0.0) + grown
        self.last |= page

    def of(self, name: str) -> float:
        """Over all labels."""
        return sum(value for key, value in self.sums.items() if key.partition("{")[0] == name)


@dataclass(slots=True)
class Standing:
    """What one process holds of the system."""

    pid: int
    descriptors: int
    resident_mib: float


class Clock:
    """Seconds since the soak began."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._begun


class Watch:
    """One cluster, watched. `now` is seconds since the soak began."""

    def __init__(self, cluster: Cluster, address: tuple[str, int]):
        self._cluster = cluster
        self._address = address
        self.roles = {name: role for name, (role, _) in cluster.processes().items()}
        self.chronicle: deque[tuple[float, str]] = deque(maxlen=CHRONICLE)
        self.away: list[Away] = []
        self.broken: dict[str, Fault] = {}  # by name: what is not over yet
        self.listed: set[str] = set()
        self.health: dict[str, Any] = {}
        self.stuck: set[str] = set()  # what workers said of themselves
        self.fullest: dict[str, float] = {}  # by role: largest share of pages held at one time
        self.totals = Totals()
        self._looks = 0
        self._old: dict[str, int] = {}  # the pid of a process that was ended

    def note(self, now: float, text: str) -> None:
        self.chronicle.append((round(now, 3), text))

    # --- faults ----------------------------------------------------------------------------------

    @property
    def well(self) -> set[str]:
        """Processes that nothing is being done to."""
        there = self.listed | ({ROUTER} if self.health else set())
        return {name for name in self.roles if name in there and name not in self.broken}

    def begun(self, fault: Fault, pid: int) -> None:
        self.broken[fault.name] = fault
        self._old[fault.name] = pid
        self.note(fault.at, f"{fault.kind} {fault.name} {fault.stopped_seconds or ''}".rstrip())
        self._judge_roles(fault.at)

    def _over(self, fault: Fault, now: float) -> None:
        fault.back = now
        del self.broken[fault.name]
        self.note(now, f"{fault.name} is back after {fault.kind}")

    # --- looking ---------------------------------------------------------------------------------

    async def look(self, clock: Clock) -> None:
        """Once at /health, now and then at /metrics."""
        reply = await exchange(self._address, get("/health"), ANSWER_SECONDS)
        now = clock.now
        answered = reply.how == "complete" and reply.status in (200, 503)
        self.health = msgspec.json.decode(reply.body) if answered else {}
        workers = self.health.get("workers", [])
        listed = {one["name"] for one in workers if not one["stuck"]}
        for name in sorted(listed - self.listed):
            self.note(now, f"{name} is listed")
        for name in sorted(self.listed - listed):
            self.note(now, f"{name} is not listed" + ("" if answered else " (no router)"))
        self.listed = listed
        for one in workers:
            if one["stuck"]:
                self.stuck.add(f"{one['name']}: {one['stuck']}")
            share = one["held_pages"] / one["pages"]
            self.fullest[one["role"]] = max(share, self.fullest.get(one["role"], 0.0))
        self._judge_faults(now, answered)
        self._judge_roles(now)
        self._looks += 1
        if answered and self._looks % COUNT_EVERY == 0:
            await self.count()

    async def count(self) -> dict[str, float]:
        """One look at /metrics; empty where nobody answers."""
        reply = await exchange(self._address, get("/metrics"), ANSWER_SECONDS)
        if reply.how != "complete" or reply.status != 200:
            return {}
        page = series(reply.body.decode())
        kept = ("_total", "penstock_stage_seconds")
        self.totals.add({key: value for key, value in page.items() if any(k in key for k in kept)})
        return page

    def _judge_faults(self, now: float, answered: bool) -> None:
        pids = pids_of(self._cluster)
        for fault in list(self.broken.values()):
            there = answered if fault.name == ROUTER else fault.name in self.listed
            if not there and fault.missed < 0:
                fault.missed = now
            over = there
            if fault.kind == "stop":
                over = there and now > fault.at + fault.stopped_seconds
            else:  # listed, and no more the one that was ended, should nobody have seen it go
                new = pids.get(fault.name, self._old[fault.name]) != self._old[fault.name]
                over = there and new and (fault.missed >= 0 or now > fault.at + UNSEEN_SECONDS)
            if over:
                self._over(fault, now)

    def _judge_roles(self, now: float) -> None:
        gone = {ROUTER} - self.well
        for role in {one for one in self.roles.values() if one != ROUTER}:
            if not any(self.roles[name] == role for name in self.well):
                gone.add(role)
        lasting = {one.role: one for one in self.away if one.to == float("inf")}
        for role, stretch in lasting.items():
            if role not in gone:
                stretch.to = now
        self.away += [Away(role, now) for role in sorted(gone - set(lasting))]

    def was_away(self, since: float, to: float, roles: set[str] | None = None) -> bool:
        """Whether one of these roles (None: any, or the router) was away in that time."""
        return any(
            one.since <= to and one.to >= since
            for one in self.away
            if roles is None or one.role in roles
        )

    # --- at rest ---------------------------------------------------------------------------------

    def whole(self) -> bool:
        """Everybody is there and nothing is broken."""
        return set(self.roles) == self.well and self.health.get("status") == "well"

    def held(self, page: dict[str, float]) -> dict[str, float]:
        """Of a metrics page: everything that must be zero when nobody asks."""
        found = {
            name: value
            for name, value in page.items()
            if name.partition("{")[0] in {f"penstock_worker_{one}" for one in STATES}
        }
        found["in flight"] = self.health.get("in_flight", -1)
        found["booked"] = sum(one["booked"] for one in self.health.get("workers", []))
        return {name: value for name, value in found.items() if value}


def pids_of(cluster: Cluster) -> dict[str, int]:
    """By name. Processes come and go while this looks."""
    while True:
        try:
            return {name: pid for name, (_, pid) in cluster.processes().items()}
        except (OSError, ValueError, IndexError):
            continue


def standings(cluster: Cluster) -> dict[str, Standing]:
    """Of the supervisor and all its children."""
    found = {}
    for name, pid in {"supervisor": cluster.pid, **pids_of(cluster)}.items():
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        found[name] = Standing(pid, descriptors, memory(pid).resident / MIB)
    return found
