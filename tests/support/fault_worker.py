"""A decode worker of real parts whose engine stands still for as long as a test likes."""

import threading
import time
from collections.abc import Callable

from penstock.bench.breaking.parts import MODEL, PAGE_SLOTS, EndSettings, open_parts
from penstock.decode.scheduler import DecodeScheduler
from penstock.decode.worker import DecodeWorker, Parts
from penstock.engine.chunking import Blocks
from penstock.engine.health import Pulse
from penstock.engine.step import Drawn, Step, StepResult
from penstock.engine.thread import EngineThread
from penstock.kvtransfer.incoming import ReaderSettings
from penstock.kvtransfer.reader import Reader
from penstock.protocol.loop import Gaps
from penstock.protocol.membership import Membership
from penstock.protocol.messages import Peer, Prefill, Sampling, WorkerDescription
from penstock.protocol.seams import Received

CONTEXT, VOCABULARY = 4096, 1 << 20
PATIENCE = 30.0


class Icy:
    """A runner whose steps last until it thaws."""

    def __init__(self) -> None:
        self.thawed = threading.Event()
        self.begun = threading.Event()

    def run(self, step: Step) -> StepResult:
        self.begun.set()
        self.thawed.wait(PATIENCE)
        drawn = tuple(Drawn((7,) * len(part.draw)) for part in step.slices)
        return StepResult(step, drawn, 0.0)


class FrozenDecode:
    """Turns in the thread of the test; `freeze` gives it a prompt of its own to hang in."""

    def __init__(self, renew_every: float) -> None:
        self.parts = parts = open_parts(EndSettings(plane="shm", name="decode"))
        self.runner = Icy()
        self.engine = EngineThread(self.runner)
        blocks = Blocks(parts.pool, parts.compatibility, PAGE_SLOTS)
        page_bytes = parts.compatibility.page_bytes
        reading = ReaderSettings(PAGE_SLOTS, page_bytes, renew_every=renew_every)
        self.reader = Reader(parts.pool, parts.mailbox, parts.plane, parts.compatibility, reading)
        description = WorkerDescription(
            "decode", MODEL, parts.compatibility, PAGE_SLOTS, 2700, CONTEXT, "none", "cpu", 1
        )
        self.worker = DecodeWorker(
            Parts(
                parts.mailbox,
                self.reader,
                self.engine,
                blocks,
                DecodeScheduler(blocks, 512, 8),
                Membership(parts.mailbox, [], description, parts.pool, 0.25),
                Pulse(PATIENCE, 0.5, Gaps()),
                CONTEXT,
                VOCABULARY,
            )
        )

    @property
    def endpoint(self) -> str:
        return self.parts.mailbox.me.endpoint

    @property
    def frozen(self) -> bool:
        return self.engine.busy and self.runner.begun.is_set() and not self.runner.thawed.is_set()

    def freeze(self) -> None:
        """A short prompt to be prefilled here, whose first step does not end."""
        router = Peer("router", 1, "tcp://127.0.0.1:9")
        sampling = Sampling(seed=1)
        prefill = Prefill(99, 1, router, MODEL, "", [1, 2, 3], 3, [0], sampling)
        self.worker._take(Received(router, prefill), time.monotonic())
        self.until(lambda: self.frozen, "the step that hangs")

    def turn(self) -> None:
        due = self.worker.turn(time.monotonic())
        wait = min(max(0.0, due - time.monotonic()), 0.05)
        self.parts.mailbox.wait(wait, (self.engine.fileno(),))

    def run_for(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.turn()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit, f"never came about: {what}"
            self.turn()

    def close(self) -> None:
        self.runner.thawed.set()
        self.engine.close()
        self.parts.close()
