"""A whole cluster in one process on the fakes: the production router flow and worker loops."""

from penstock.decode.scheduler import DecodeScheduler
from penstock.decode.worker import DecodeWorker
from penstock.decode.worker import Parts as DecodeParts
from penstock.engine.chunking import Blocks
from penstock.engine.health import Pulse
from penstock.kvtransfer.holder import Holder
from penstock.kvtransfer.incoming import ReaderSettings
from penstock.kvtransfer.reader import Reader
from penstock.prefill.scheduler import PrefillScheduler
from penstock.prefill.worker import Parts as PrefillParts
from penstock.prefill.worker import PrefillWorker
from penstock.protocol.loop import Gaps
from penstock.protocol.membership import Membership
from penstock.protocol.messages import (
    Compatibility,
    PromptReport,
    Role,
    Sampling,
    WorkerDescription,
)
from penstock.protocol.pages import PagePool
from penstock.router.fleet import Fleet
from penstock.router.flow import Flow
from penstock.router.flow_numbers import FlowSettings
from penstock.router.inbox import Inbox
from penstock.router.request import Submission

from .fakes import SLOTS, VOCABULARY, FakeEngine, FakePlane, Memory, Network

COMPATIBILITY = Compatibility(1, "model", "class", "fp32", "layout", 64, "fake")
ROUTER = "fake://router"


class Worker:
    """One worker with its fakes in reach."""

    def __init__(self, cluster: "Cluster", name: str, role: Role, pages: int, chunk: int):
        self.mailbox = cluster.network.mailbox(name)
        self.memory = Memory(pages)
        self.pool = PagePool(self.memory.generations)
        self.plane = FakePlane(self.memory, self.mailbox.me.endpoint, cluster.planes)
        self.engine = FakeEngine(self.memory)
        self.blocks = Blocks(self.pool, COMPATIBILITY, SLOTS)
        context = pages * SLOTS
        description = WorkerDescription(
            role, "model", COMPATIBILITY, SLOTS, pages, context, "fake", "cpu", 1
        )
        membership = Membership(self.mailbox, [ROUTER], description, self.pool, 0.25)
        pulse = Pulse(60.0, 0.5, Gaps())
        if role == "prefill":
            self.holder = Holder(self.pool, self.mailbox, self.plane, COMPATIBILITY, 10.0)
            self.scheduler = PrefillScheduler(self.blocks, chunk, pages // 2)
            self.worker = PrefillWorker(
                PrefillParts(
                    self.mailbox,
                    self.plane,
                    self.engine,
                    self.blocks,
                    self.scheduler,
                    self.holder,
                    membership,
                    pulse,
                    context,
                    VOCABULARY,
                )
            )
        else:
            settings = ReaderSettings(SLOTS, 64)
            self.reader = Reader(self.pool, self.mailbox, self.plane, COMPATIBILITY, settings)
            self.scheduler = DecodeScheduler(self.blocks, chunk, 64)
            self.worker = DecodeWorker(
                DecodeParts(
                    self.mailbox,
                    self.reader,
                    self.engine,
                    self.blocks,
                    self.scheduler,
                    membership,
                    pulse,
                    context,
                    VOCABULARY,
                )
            )

    @property
    def preemptions(self) -> int:
        assert isinstance(self.scheduler, DecodeScheduler)
        return self.scheduler.preemptions


class Client:
    """A Listener that keeps everything, and checks the order of calls."""

    def __init__(self, choices: int):
        self.request = -1
        self.tokens: list[list[int]] = [[] for _ in range(choices)]
        self.logprobs: list[list[object]] = [[] for _ in range(choices)]
        self.finish = [""] * choices
        self.report: PromptReport | None = None
        self.failure: tuple[int, str] | None = None

    def prompt(self, report: PromptReport) -> None:
        assert self.report is None and self.failure is None
        self.report = report

    def token(self, choice, token_id, logprobs, finish) -> None:
        assert self.report is not None and self.failure is None and not self.finish[choice]
        if token_id >= 0:
            self.tokens[choice].append(token_id)
            self.logprobs[choice].append(logprobs)
        self.finish[choice] = finish

    def failed(self, status: int, reason: str) -> None:
        assert self.failure is None
        self.failure = (status, reason)

    @property
    def prompt_scores(self):
        assert self.report is not None
        return self.report.prompt_logprobs

    @property
    def ended(self) -> bool:
        return self.failure is not None or all(self.finish)


class Cluster:
    """Router flow and workers, turned by hand on a virtual clock."""

    def __init__(self, prefill=1, decode=1, aggregated=0, pages=64, chunk=8, local=0, **flow):
        self.network = Network()
        self.planes: dict[str, FakePlane] = {}
        self.now = 0.0
        self.mailbox = self.network.mailbox("router")
        self.fleet = Fleet(5.0)
        settings = FlowSettings(local_prefill_tokens=local, **flow)
        self.flow = Flow(self.mailbox, self.fleet, settings, lambda: self.now, 0)
        self.inbox = Inbox(self.mailbox, self.fleet, self.flow)
        self.workers: dict[str, Worker] = {}
        counts: dict[Role, int] = {
            "prefill": prefill,
            "decode": decode,
            "aggregated": aggregated,
        }
        for role, count in counts.items():
            for index in range(count):
                self.start(f"{role}-{index}", role, pages, chunk)
        self.run(2)

    def start(self, name: str, role: Role, pages: int = 64, chunk: int = 8) -> Worker:
        self.workers[name] = Worker(self, name, role, pages, chunk)
        return self.workers[name]

    def kill(self, name: str) -> None:
        self.network.kill(self.workers.pop(name).mailbox)

    def turn(self) -> None:
        self.now += 0.01
        for worker in list(self.workers.values()):
            worker.worker.turn(self.now)
        self.inbox.deliver(self.mailbox.receive(), self.now)
        self.inbox.tick(self.now)
        for worker in self.workers.values():
            if not worker.engine.busy:
                worker.pool.check()

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()

    def until(self, condition, limit: int = 5000) -> None:
        for _ in range(limit):
            if condition():
                return
            self.turn()
        raise AssertionError("this never came about")

    def ask(self, prompt, n=1, salt="", **sampling) -> Client:
        client = Client(n)
        sampling.setdefault("seed", 7)
        sampling.setdefault("max_tokens", 12)
        client.request = self.flow.submit(
            Submission("model", list(prompt), n, Sampling(**sampling), salt), client
        )
        return client

    def settle(self) -> None:
        """Run until nothing is going on, then every page must be free or cached."""
        self.until(lambda: not self.flow.in_flight)
        self.run(20)
        for name, worker in self.workers.items():
            worker.pool.check()
            assert worker.pool.held == 0, f"{name} still holds {worker.pool.held} pages"
            assert worker.pool.quarantined == 0
            assert not worker.plane.open
