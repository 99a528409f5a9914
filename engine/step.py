"""The engine seam: what a step is asked to do and what it answers. Pure.

The server builds a Step out of Sequences, the engine (a runner on its own thread, or a fake one
whose tokens are a hash) answers a StepResult with one entry per slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

from ..protocol.messages import TokenLogprobs
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """Run tokens start .. start+count of one sequence; K and V land in its pages.

    `draw`: the choices to draw the token at position start+count for ([] = do not draw).
    With sampling.prompt_logprobs >= 0, log-probabilities of the prompt tokens among positions
    start+1 .. start+count are wanted too.
    `follows`: its one token is the one that the step before draws for the sequence; the loop does
    not know it yet.
    """

    sequence: Sequence
    start: int
    count: int
    draw: tuple[int, ...] = ()
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over all slices together."""

    slices: tuple[Slice, ...]

    @property
    def tokens(self) -> int:
        return sum(part.count for part in self.slices)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One slice's answer: a token per drawn choice, and its log-probabilities where wanted."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()  # empty, or one per token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of positions start+1.. within the prompt
    error: str = ""  # this slice alone has no answer (its logits are not finite)

    @property
    def pairs(self) -> Iterator[tuple[int, TokenLogprobs | None]]:
        """Each token with its log-probabilities or None."""
        return zip(self.token_ids, self.logprobs or repeat(None), strict=False)


@dataclass(frozen=True, slots=True)
class StepResult:
    """`drawn[i]` answers `step.slices[i]`. `error` is set when the step raised."""

    step: Step
    drawn: tuple[Drawn, ...]
    seconds: float
    error: str = ""


class Engine(Protocol):
    """Steps in order, at most two in flight; `start` and `finished` return at once."""

    def start(self, step: Step) -> None: ...

    def finished(self) -> StepResult | None: ...

    @property
    def busy(self) -> bool: ...
