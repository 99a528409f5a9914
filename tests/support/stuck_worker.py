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
from penstock.protocol.seams import Connected, Disconnected
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

    def __init__(self, mailbox: Mailbox, membership: Membership, engine: EngineThread):
        self.stuck = ""
        self._mailbox, self._membership, self._engine = mailbox, membership, engine
        self._pool = PagePool([0] * 4)
        self._pulse = Pulse(STEP_LIMIT_SECONDS, 0.5, Gaps(), engine)

    def turn(self, now: float) -> float:
        for arrival in self._mailbox.receive():
            if isinstance(arrival, Connected | Disconnected):
                self._membership.link(arrival, WorkerState())
        if not self._engine.busy:
            self._engine.start(Step(()))
            self._pulse.step_started(now)
        self.stuck = self._pulse.stuck(now, self._pool)
        return self._membership.beat(now, WorkerState, dict, self.stuck)


def main(router: str) -> int:
    mailbox = Mailbox("worker")
    engine = EngineThread(Hangs())
    described = WorkerDescription("prefill", "m", COMPATIBILITY, 4, 4, 16, "none", "cpu", 1)
    membership = Membership(mailbox, [router], described, PagePool([0] * 4), 0.05)
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
    return Station.drive(station, Worker(mailbox, membership, engine), report("worker"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
