"""A whole cluster in one process: production router flow and worker loops, turned by hand. Pure.

Here everything is orderly and whoever uses it decides what happens; `schedule.py` lets a seed
decide.
"""

from collections.abc import Callable, Iterable

from ..protocol.messages import PromptReport, Role, Sampling, TokenLogprobs
from ..router.fleet import Fleet
from ..router.flow import Flow
from ..router.flow_numbers import FlowSettings
from ..router.inbox import Inbox
from ..router.request import Submission
from .engine import SimulatedEngine
from .memory import Memory
from .network import Mailbox, Network, endpoint_of
from .plane import SimulatedPlane
from .worker import COMPATIBILITY, Seams, Shape, Worker

ROUTER = endpoint_of("router")
SILENCE_SECONDS = 5.0
TURN_SECONDS = 0.01


class Client:
    """A Listener that keeps everything, and checks the order of calls."""

    def __init__(self, choices: int):
        self.request = -1
        self.tokens: list[list[int]] = [[] for _ in range(choices)]
        self.logprobs: list[list[TokenLogprobs | None]] = [[] for _ in range(choices)]
        self.finish = [""] * choices
        self.report: PromptReport | None = None
        self.failure: tuple[int, str] | None = None

    def prompt(self, report: PromptReport) -> None:
        assert self.report is None and self.failure is None
        self.report = report

    def token(
        self, choice: int, token_id: int, logprobs: TokenLogprobs | None, finish: str
    ) -> None:
        assert self.report is not None and self.failure is None and not self.finish[choice]
        if token_id >= 0:
            self.tokens[choice].append(token_id)
            self.logprobs[choice].append(logprobs)
        self.finish[choice] = finish

    def failed(self, status: int, reason: str) -> None:
        assert self.failure is None
        self.failure = (status, reason)

    @property
    def prompt_scores(self) -> list[TokenLogprobs | None]:
        assert self.report is not None
        return self.report.prompt_logprobs

    @property
    def ended(self) -> bool:
        return self.failure is not None or all(self.finish)


class Cluster:
    """Router flow and workers on a virtual clock."""

    def __init__(
        self,
        prefill: int = 1,
        decode: int = 1,
        aggregated: int = 0,
        pages: int = 64,
        chunk: int = 8,
        local: int = 0,
        **flow,
    ):
        self.network = Network()
        self.planes: dict[str, SimulatedPlane] = {}
        self.compatibility = COMPATIBILITY
        self.now = 0.0
        self.mailbox = self.network.mailbox("router")
        self.settings = FlowSettings(local_prefill_tokens=local, **flow)
        self.fleet = Fleet(SILENCE_SECONDS)
        self.flow = Flow(self.mailbox, self.fleet, self.settings, lambda: self.now, 0)
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
        mailbox = self.network.mailbox(name)
        memory = Memory(pages)
        seams = Seams(
            mailbox,
            memory,
            SimulatedPlane(memory, mailbox.me.endpoint, self.planes),
            SimulatedEngine(memory),
        )
        self.workers[name] = Worker(seams, Shape(role, chunk, self.compatibility), [ROUTER])
        return self.workers[name]

    def kill(self, name: str) -> None:
        mailbox = self.workers.pop(name).mailbox
        assert isinstance(mailbox, Mailbox)
        self.network.kill(mailbox)

    def turn(self) -> None:
        self.now += TURN_SECONDS
        for worker in list(self.workers.values()):
            worker.worker.turn(self.now)
        self.inbox.deliver(self.mailbox.receive(), self.now)
        self.inbox.tick(self.now)
        self.flow.turn(self.now)
        for worker in self.workers.values():
            if not worker.engine.busy:
                worker.pool.check()

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()

    def until(self, condition: Callable[[], bool], limit: int = 5000) -> None:
        for _ in range(limit):
            if condition():
                return
            self.turn()
        raise AssertionError("this never came about")

    def ask(self, prompt: Iterable[int], n: int = 1, salt: str = "", **sampling) -> Client:
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
