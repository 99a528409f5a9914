"""The simulated engine: tokens are a hash of what precedes them. Pure.

It keeps in every page the tokens whose K and V would be there, and checks before each draw that
the pages hold exactly the sequence's prefix.
"""

from array import array
from collections import deque
from hashlib import blake2b

from ..engine.flights import MOST
from ..engine.sequence import Sequence
from ..engine.step import Drawn, Slice, Step, StepResult
from ..protocol.messages import TokenLogprobs
from .chance import Violation
from .memory import SLOTS, Memory

VOCABULARY = 1000
STEP_SECONDS = 0.001


def true_token(prefix: list[int], seed: int, choice: int) -> int:
    """The one right token after this prefix."""
    content = array("q", (seed, choice, *prefix)).tobytes()
    return int.from_bytes(blake2b(content, digest_size=4).digest(), "big") % VOCABULARY


def true_tokens(prompt: list[int], seed: int, choice: int, count: int) -> list[int]:
    """The one right answer, `count` tokens long."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(true_token(tokens, seed, choice))
    return tokens[len(prompt) :]


class SimulatedEngine:
    """Steps in order, two at most, finished when asked for, unless `hold`."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self.flying: deque[tuple[Step, list[list[int]]]] = deque()  # with the pages of each slice
        self.hold = False
        self.fail_next = ""
        self.steps = 0
        self._drawn: dict[Sequence, int] = {}  # by the step before

    @property
    def busy(self) -> bool:
        return bool(self.flying)

    @property
    def step(self) -> Step | None:
        """The one that runs."""
        return self.flying[0][0] if self.flying else None

    def start(self, step: Step) -> None:
        if len(self.flying) == MOST:
            raise Violation("a step was started under two others")
        if not self.flying and any(part.follows for part in step.slices):
            raise Violation("a step follows one whose result was taken")
        self.flying.append((step, [list(part.sequence.pages) for part in step.slices]))

    def finished(self) -> StepResult | None:
        """What it writes lands now, in the pages its sequences had when it was started."""
        if not self.flying or self.hold:
            return None
        step, pages = self.flying.popleft()
        self.steps += 1
        before, self._drawn = self._drawn, {}
        if not self.fail_next and any(p.follows and p.sequence not in before for p in step.slices):
            self.fail_next = "the step before drew nothing"
        if self.fail_next:
            error, self.fail_next = self.fail_next, ""
            return StepResult(step, (), STEP_SECONDS, error)
        drawn = tuple(
            self._run(part, held, before) for part, held in zip(step.slices, pages, strict=True)
        )
        return StepResult(step, drawn, STEP_SECONDS)

    def _run(self, part: Slice, pages: list[int], before: dict[Sequence, int]) -> Drawn:
        sequence = part.sequence
        end = part.start + part.count
        prefix, sampling = sequence.token_ids[:end], sequence.sampling
        if part.follows:
            prefix = [*prefix[: part.start], before[sequence]]
        for position in range(part.start, end):
            page = pages[position // SLOTS]
            self.memory.tokens[page * SLOTS + position % SLOTS] = prefix[position]
        held = self.memory.prefix(pages, end)
        if held != prefix:
            raise Violation(f"pages hold {held}, not {prefix}")
        tokens = tuple(true_token(prefix, sampling.seed, one) for one in part.draw)
        if tokens:
            self._drawn[sequence] = tokens[0]
        wanted = sampling.logprobs >= 0
        logprobs = tuple(TokenLogprobs(-1.0) if wanted else None for _ in tokens)
        scored = ()
        if sampling.prompt_logprobs >= 0:
            last = min(end, sequence.prompt_length - 1)
            scored = tuple(TokenLogprobs(-float(one)) for one in range(part.start + 1, last + 1))
        return Drawn(tokens, logprobs, scored)
