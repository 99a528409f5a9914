"""A worker process whose engine hangs in a step: a real station, driven until it is stuck."""

import sys
import threading
from types import SimpleNamespace
from typing import cast

from penstock.engine.health import Pulse
from penstock.engine.load import LoadedEngine
from penstock.engine.station import Station
from penstock.engine.step import Step, StepResult
from penstock.engine.thread import EngineThread
from penstock.protocol.lifeline import report
from penstock.protocol.loop import Gaps
from penstock.protocol.membership import Membership
from penstock.protocol.messages import Compatibility, WorkerDescription, WorkerState
from penstock.protocol.pages import PagePool
from penstock.protocol.sockets import Mailbox

STEP_LIMIT_SECONDS = 0.1
COMPATIBILITY = Compatibility(1, "m", "c", "bf16", "layout", 1, "shm")


class Hangs:
    """A device that never answers."""

    def run(self, step: Step) -> StepResult:
        threading.Event().wait()
        raise AssertionError("unreachable")


class Worker:
    """Only as much of one as tells that it is stuck."""

    def __init__(self, membership: Membership, engine: EngineThread, pool: PagePool):
        self.stuck = ""
        self._membership, self._engine, self._pool = membership, engine, pool
        self._pulse = Pulse(STEP_LIMIT_SECONDS, 0.5, Gaps(), engine)

    def turn(self, now: float) -> float:
        if not self._engine.busy:
            self._engine.start(Step(()))
            self._pulse.step_started(now)
        self.stuck = self._pulse.stuck(now, self._pool)
        return self._membership.beat(now, WorkerState, dict, self.stuck)


def main(router: str) -> int:
    mailbox, pool = Mailbox("worker"), PagePool([0] * 4)
    engine = EngineThread(Hangs())
    described = WorkerDescription("prefill", "m", COMPATIBILITY, 4, 4, 16, "none", "cpu", 1)
    membership = Membership(mailbox, [router], described, pool, 0.05)
    membership.connected.add(router)
    station = cast(
        Station,
        SimpleNamespace(
            mailbox=mailbox,
            membership=membership,
            gaps=Gaps(),
            plane_wake=-1,
            loaded=cast(LoadedEngine, SimpleNamespace(engine=engine)),
        ),
    )
    return Station.drive(station, Worker(membership, engine, pool), report("worker"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
