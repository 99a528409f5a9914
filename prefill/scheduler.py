"""Which prompt chunks run next on a prefill worker. Pure.

First come, first served: the wait of a prompt is then what stands before it, which is what the
router predicts. All pages of a prompt are taken when it starts, so that two half-computed prompts
never wait for each other's pages.
"""

from collections import deque

from ..engine.chunking import Blocks, chunk
from ..engine.sequence import Sequence
from ..engine.step import Slice, Step


class PrefillScheduler:
    """Prompts waiting for pages, and prompts being computed."""

    def __init__(self, blocks: Blocks, chunk_tokens: int, leased_page_limit: int):
        self._blocks = blocks
        self._chunk_tokens = chunk_tokens
        self._leased_page_limit = leased_page_limit
        self.waiting: deque[Sequence] = deque()
        self.started: list[Sequence] = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.started)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens not computed yet, cached ones of waiting prompts included."""
        return sum(len(one.token_ids) - one.computed for one in (*self.waiting, *self.started))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def find(self, request: int, attempt: int) -> Sequence | None:
        """The sequence of one attempt, waiting or started."""
        for sequence in (*self.waiting, *self.started):
            if (sequence.prefill.request, sequence.prefill.attempt) == (request, attempt):
                return sequence
        return None

    def remove(self, sequence: Sequence) -> None:
        """It ended; its pages are let go."""
        if sequence in self.started:
            self.started.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._blocks.drop(sequence)

    def next_step(self, leased_pages: int, now: float) -> Step | None:
        """Chunks of started prompts in order, then new prompts while tokens and pages last.

        `leased_pages`: pages readers have not pulled yet; beyond the limit no prompt starts, so
        that a slow decode side holds prefill back instead of filling its memory.
        """
        budget = self._chunk_tokens
        slices: list[Slice] = []
        for sequence in self.started:
            if budget > 0:
                slices.append(chunk(sequence, budget))
                budget -= slices[-1].count
        while budget > 0 and self.waiting and leased_pages <= self._leased_page_limit:
            sequence = self.waiting[0]
            scoring = sequence.sampling.prompt_logprobs >= 0
            if not self._blocks.start(sequence, len(sequence.token_ids), 0, not scoring):
                break
            self.started.append(self.waiting.popleft())
            sequence.started = now
            slices.append(chunk(sequence, budget))
            budget -= slices[-1].count
        return Step(tuple(slices)) if slices else None
