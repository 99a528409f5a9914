"""What random schedules put into a worker and before the router: plane, engine, client.

Each misbehaves as its seam allows, and raises Violation when its user breaks a rule of the seam.
"""

from collections.abc import Callable
from dataclasses import dataclass

from penstock.engine.step import Slice, Step, StepResult
from penstock.kvtransfer.plane import Completion, PlaneError
from penstock.protocol.messages import Sampling
from penstock.protocol.pages import PagePool, PageState

from .cluster import Client
from .fakes import SLOTS, FakeEngine, FakePlane, Memory, true_tokens
from .schedules_network import Chance

GARBAGE = {0: -1}


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Read:
    """One read, as it was asked for."""

    source: "RandomPlane"
    remote: list[int]
    local: list[int]
    granted: list[int]  # generations of the local pages
    wait: int = 0  # turns to go
    cut: bool = False  # the peer was removed meanwhile


class RandomPlane(FakePlane):
    """Reads last, fail, or go on landing bytes after they failed."""

    def __init__(
        self, chance: Chance, memory: Memory, endpoint: str, everyone: dict[str, FakePlane]
    ):
        super().__init__(memory, endpoint, everyone)
        self.chance = chance
        self.pool: PagePool | None = None  # set by the worker, which makes its pool apart
        self.key = f"{endpoint} {len(everyone)}"  # names this incarnation's memory
        everyone[self.key] = self
        self.alive = True
        self.reads: dict[int, Read] = {}
        self.late: dict[int, Read] = {}  # failed, and bytes may still land
        self._sources: dict[str, RandomPlane] = {}

    def metadata(self) -> bytes:
        return self.key.encode()

    def add_peer(self, endpoint: str, incarnation: int, metadata: bytes) -> None:
        super().add_peer(endpoint, incarnation, metadata)
        source = self.everyone[metadata.decode()]
        assert isinstance(source, RandomPlane)
        self._sources[endpoint] = source

    def remove_peer(self, endpoint: str) -> None:
        super().remove_peer(endpoint)
        source = self._sources.pop(endpoint, None)
        for read in self.reads.values():
            read.cut |= read.source is source

    def quiet(self, ticket: int) -> bool:
        return ticket not in self.reads and ticket not in self.late

    def read(self, endpoint, remote, local, expected=None) -> int:
        ticket = super().read(endpoint, remote, local)
        source = self._sources[endpoint]
        if any(not 0 <= page < len(source.memory.pages) for page in remote):
            del self.open[ticket]
            raise PlaneError("a page out of range")
        for page in local:
            self._writable(page)
        landing = [*self.reads.values(), *self.late.values()]
        if any(page in read.local for read in landing for page in local):
            raise Violation("a read into a page where another read may still land")
        granted = [self.memory.generations[page] for page in local]
        wait = self.chance.rng.choice([2, 5, 30]) if self.chance.happens(0.15) else 0
        self.reads[ticket] = Read(source, list(remote), list(local), granted, wait)
        return ticket

    def progress(self) -> list[Completion]:
        for ticket, read in list(self.late.items()):
            read.wait -= 1
            if read.wait < 0:
                self._land(self.late.pop(ticket), [GARBAGE] * len(read.local))
        done: list[Completion] = []
        for ticket, read in [] if self.hold else list(self.reads.items()):
            if read.wait > 0 and not self.chance.calm:
                read.wait -= 1
            else:
                done.append(self._end(ticket, read))
        return done

    def _end(self, ticket: int, read: Read) -> Completion:
        del self.open[ticket], self.reads[ticket]
        lost = read.cut or not read.source.alive or ticket in self.abandoned
        if lost or self.chance.happens(0.03):
            late = self.chance.happens(0.5)
            if late:
                read.wait = self.chance.rng.choice([1, 4, 20])
                self.late[ticket] = read
            return Completion(ticket, "read failed", (), not late)
        memory = read.source.memory
        self._land(read, [memory.pages[page] for page in read.remote])
        return Completion(ticket, "", tuple(memory.generations[one] for one in read.remote), True)

    def _land(self, read: Read, contents: list[dict[int, int]]) -> None:
        assert self.pool is not None
        for page, content, generation in zip(read.local, contents, read.granted, strict=True):
            if self.memory.generations[page] != generation:
                raise Violation(f"bytes landed in page {page}, which was granted again")
            if self.pool.state(page) in (PageState.SEALED, PageState.CACHED):
                raise Violation(f"bytes landed in page {page}, which is sealed")
            self.memory.pages[page] = dict(content)

    def _writable(self, page: int) -> None:
        assert self.pool is not None
        if self.pool.state(page) is not PageState.OPEN:
            raise Violation(f"a read into page {page}, which is {self.pool.state(page).value}")


class RandomEngine(FakeEngine):
    """Steps last some turns and may fail; what a step was given must not change meanwhile."""

    def __init__(self, chance: Chance, memory: Memory):
        super().__init__(memory)
        self.chance = chance
        self.pool: PagePool | None = None  # set by the worker
        self._turns = 0
        self._given: list[tuple] = []

    def start(self, step: Step) -> None:
        super().start(step)
        if not step.slices:
            raise Violation("an empty step")
        holders = {part.sequence.holder for part in step.slices}
        if len(holders) < len(step.slices):
            raise Violation("a sequence is twice in one step")
        self._given = [self._facts(part) for part in step.slices]
        self._turns = 0 if self.chance.calm else self.chance.rng.choice([0, 0, 1, 3])

    def finished(self) -> StepResult | None:
        if self.step is None or self.hold:
            return None
        if self._turns > 0:
            self._turns -= 1
            return None
        for part, given in zip(self.step.slices, self._given, strict=True):
            self._unchanged(part, given)
        if self.chance.happens(0.01):
            self.fail_next = "out of memory"
        return super().finished()

    def _facts(self, part: Slice) -> tuple:
        one = part.sequence
        pages = one.pages[: -(-(part.start + part.count) // SLOTS)]
        generations = [self.memory.generations[page] for page in pages]
        tokens, choices = list(one.token_ids), list(one.choices)
        return tokens, one.computed, list(one.pages), choices, one.sealed, generations

    def _unchanged(self, part: Slice, given: tuple) -> None:
        assert self.pool is not None
        if self._facts(part) != given:
            raise Violation(f"a sequence changed under its step: {given} -> {self._facts(part)}")
        for position in range(part.start, part.start + part.count):
            page = part.sequence.pages[position // SLOTS]
            if self.pool.state(page) is not PageState.OPEN:
                raise Violation(f"a step writes page {page}, {self.pool.state(page).value}")


@dataclass(frozen=True, slots=True)
class Question:
    """What one client asks."""

    prompt: list[int]
    choices: int
    sampling: Sampling
    salt: str

    def fits(self, longest: int) -> bool:
        return len(self.prompt) + min(1, self.sampling.max_tokens) <= longest

    def answer(self, choice: int, longest: int) -> list[int]:
        """The one right answer of a choice, where `longest` tokens fit the workers' memory."""
        count = min(self.sampling.max_tokens, longest - len(self.prompt) or 1)
        tokens = true_tokens(self.prompt, self.sampling.seed, choice, count)
        stops = [at for at, token in enumerate(tokens) if token in self.sampling.stop_token_ids]
        return tokens[: stops[0] + 1] if stops else tokens


class RandomClient(Client):
    """Checks when it is called, and may answer from inside a call as the HTTP side does."""

    def __init__(self, question: Question):
        super().__init__(question.choices)
        self.question = question
        self.over = False  # cancelled, or its router is gone: no call may come
        self.stopped: set[int] = set()  # choices it wanted no more of
        self.after_token: Callable[[int], None] = lambda choice: None

    def prompt(self, report) -> None:
        if self.over or self.report is not None or self.failure is not None:
            raise Violation("prompt() after the end, or twice")
        super().prompt(report)

    def token(self, choice, token_id, logprobs, finish) -> None:
        early = self.report is None
        if self.over or early or self.failure is not None or self.finish[choice]:
            raise Violation(f"token() after the end or before the report: {self.finish}")
        super().token(choice, token_id, logprobs, finish)
        self.after_token(choice)

    def failed(self, status: int, reason: str) -> None:
        if self.over or self.ended:
            raise Violation("failed() after the end")
        super().failed(status, reason)

    def judge(self, longest: int) -> None:
        """What it was given, against the one right answer."""
        who = f"request {self.request}"
        if self.failure is not None and self.question.fits(longest):
            raise Violation(f"{who} failed: {self.failure}")
        if not self.over and not self.ended:
            raise Violation(f"{who} never ended, and is not in flight")
        for choice, given in enumerate(self.tokens):
            right = self.question.answer(choice, longest)
            if given != right[: len(given)]:
                raise Violation(f"{who}.{choice}: wrong tokens {given}, not {right}")
            cut = self.over or self.failure is not None or choice in self.stopped
            if not cut and given != right:
                raise Violation(f"{who}.{choice}: only {given} of {right}")
        self._judge_scores(who)

    def _judge_scores(self, who: str) -> None:
        sampling = self.question.sampling
        if sampling.logprobs >= 0 and any(one is None for ones in self.logprobs for one in ones):
            raise Violation(f"{who}: a token without its log-probabilities")
        if sampling.prompt_logprobs >= 0 and self.report is not None:
            scores = [None if one is None else one.logprob for one in self.prompt_scores]
            if scores != [None, *(-float(one) for one in range(1, len(self.question.prompt)))]:
                raise Violation(f"{who}: prompt scores {scores}")
