"""Which sequences run next on a decode worker. Pure.

Every running sequence gets its next token in every step; what the step has left goes to short
prompts prefilled here, to forks (`n` > 1) and to sequences that were preempted. When pages run
out, the youngest sequence gives its pages up and is computed again later; the oldest is never the
victim, so that something always finishes. Order is by arrival everywhere.
"""

from bisect import insort

from ..engine.chunking import Blocks, chunk
from ..engine.finish import ends_by_length
from ..engine.sequence import Sequence
from ..engine.step import Slice, Step


def _arrival(sequence: Sequence) -> tuple[float, tuple[int, int, int]]:
    """A total order: choices of one request arrive together, and one of them must be older."""
    return sequence.arrived, sequence.holder


class DecodeScheduler:
    """Sequences that run, that are being filled (prefilled here), and that wait for pages."""

    def __init__(self, blocks: Blocks, chunk_tokens: int, max_batch: int):
        self._blocks = blocks
        self._chunk_tokens = chunk_tokens
        self._max_batch = max_batch
        self.running: list[Sequence] = []
        self.filling: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0

    @property
    def all(self) -> list[Sequence]:
        return [*self.running, *self.filling, *self.waiting]

    @property
    def idle(self) -> bool:
        return not (self.running or self.filling or self.waiting)

    @property
    def room(self) -> int:
        """Sequences that may still join the batch."""
        return self._max_batch - len(self.running) - len(self.filling)

    @property
    def headroom(self) -> int:
        """Pages to leave free for the growth of what runs: one each."""
        return len(self.running) + len(self.filling)

    @property
    def waiting_tokens(self) -> int:
        return sum(len(one.token_ids) - one.computed for one in (*self.filling, *self.waiting))

    def add(self, sequence: Sequence) -> None:
        """A prompt to be computed here (or again)."""
        insort(self.waiting, sequence, key=_arrival)

    def join(self, sequence: Sequence) -> None:
        """A sequence whose tokens but the last are computed, in pages it holds."""
        insort(self.running, sequence, key=_arrival)

    def filled(self, sequence: Sequence) -> None:
        """The prompt is computed; it goes on with one token per step."""
        self.filling.remove(sequence)
        self.join(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It ended; its pages are let go."""
        for group in (self.running, self.filling, self.waiting):
            if sequence in group:
                group.remove(sequence)
        self._blocks.drop(sequence)

    def next_step(self, oldest_handover: float, now: float) -> Step | None:
        """`oldest_handover`: arrival of the oldest hand-over that waits for pages, or infinity.

        Prompts that arrived after it do not take pages before it.
        """
        slices = self._decode_slices()
        budget = self._chunk_tokens
        for sequence in self.filling:
            if budget > 0:
                slices.append(chunk(sequence, budget))
                budget -= slices[-1].count
        while budget > 0 and self.waiting and self.room > 0:
            sequence = self.waiting[0]
            scoring = sequence.sampling.prompt_logprobs >= 0
            tokens = len(sequence.token_ids)
            if sequence.arrived > oldest_handover:
                break
            if not self._blocks.start(sequence, tokens, self.headroom, not scoring):
                break
            self.filling.append(self.waiting.pop(0))
            if sequence.started < 0:
                sequence.started = now
            slices.append(chunk(sequence, budget))
            budget -= slices[-1].count
        return Step(tuple(slices)) if slices else None

    def step_behind(self, last: Step, context_length: int) -> Step | None:
        """The step after `last`, which is still running: what it draws is not known yet.

        Every sequence that runs goes on, unless its length ends it; one that ends by what is
        drawn has computed a row for nothing. None where `last` must be seen first: a prompt
        waits, or its next chunk; a sequence whose logits depend on all its tokens; pages that
        only a preemption could give.
        """
        if self.filling or self.waiting:
            return None
        running_behind = {part.sequence: part for part in last.slices}
        slices = []
        for sequence in self.running:
            if sequence.cancelled:
                continue
            part = running_behind.get(sequence)
            if part is None:
                follower = Slice(sequence, sequence.computed, 1, tuple(sequence.choices))
            elif sequence.remembers:
                return None
            elif ends_by_length(sequence, part.start + 2, context_length):
                continue
            else:
                follower = Slice(sequence, part.start + 1, 1, part.draw, follows=True)
            if not self._blocks.grow(sequence, follower.start + 1):
                return None
            slices.append(follower)
        return Step(tuple(slices)) if slices else None

    def _decode_slices(self) -> list[Slice]:
        slices = []
        for sequence in list(self.running):
            if not sequence.pages or sequence.cancelled:
                continue  # preempted for an older one, or on its way out
            while not self._blocks.grow(sequence, sequence.computed + 1):
                if not self._preempt_younger(sequence):
                    break
            else:
                draw = tuple(sequence.choices)
                slices.append(Slice(sequence, sequence.computed, 1, draw))
        return slices

    def _preempt_younger(self, sequence: Sequence) -> bool:
        """Take the pages of the youngest sequence, if it is younger than this one."""
        candidates = [*self.running, *self.filling]
        victim = max(candidates, key=_arrival)
        if victim is sequence or _arrival(victim) <= _arrival(sequence):
            return False
        (self.running if victim in self.running else self.filling).remove(victim)
        self._blocks.drop(victim)
        self.preemptions += 1
        self.add(victim)
        return True
