"""The simulated engine: tokens are a hash of what precedes them. Pure.

It keeps in every page the tokens whose K and V would be there, and checks before each draw that
the pages hold exactly the sequence's prefix.
"""

from array import array
from hashlib import blake2b

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
    """One step at a time, finished when asked for, unless `hold`."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self.step: Step | None = None
        self.hold = False
        self.fail_next = ""
        self.steps = 0

    @property
    def busy(self) -> bool:
        return self.step is not None

    def start(self, step: Step) -> None:
        if self.step is not None:
            raise Violation("a step was started under another one")
        self.step = step

    def finished(self) -> StepResult | None:
        if self.step is None or self.hold:
            return None
        step, self.step = self.step, None
        self.steps += 1
        if self.fail_next:
            error, self.fail_next = self.fail_next, ""
            return StepResult(step, (), STEP_SECONDS, error)
        return StepResult(step, tuple(self._run(part) for part in step.slices), STEP_SECONDS)

    def _run(self, part: Slice) -> Drawn:
        sequence = part.sequence
        end = part.start + part.count
        for position in range(part.start, end):
            page = sequence.pages[position // SLOTS]
            self.memory.tokens[page * SLOTS + position % SLOTS] = sequence.token_ids[position]
        prefix, sampling = sequence.token_ids[:end], sequence.sampling
        held = self.memory.prefix(sequence.pages, end)
        if held != prefix:
            raise Violation(f"pages hold {held}, not {sequence.token_ids}")
        tokens = tuple(true_token(prefix, sampling.seed, one) for one in part.draw)
        wanted = sampling.logprobs >= 0
        logprobs = tuple(TokenLogprobs(-1.0) if wanted else None for _ in tokens)
        scored = ()
        if sampling.prompt_logprobs >= 0:
            last = min(end, sequence.prompt_length - 1)
            scored = tuple(TokenLogprobs(-float(one)) for one in range(part.start + 1, last + 1))
        return Drawn(tokens, logprobs, scored)
