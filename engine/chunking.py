"""Prompts into chunks, blocks into the cache: what prefill and decode do alike. Pure."""

from ..protocol import blockhash
from ..protocol.messages import Compatibility, Prefill
from ..protocol.pages import PagePool
from .sequence import Sequence
from .step import Slice


class Blocks:
    """Pages of sequences: found in the cache, taken for what is missing, sealed when full."""

    def __init__(self, pool: PagePool, compatibility: Compatibility, page_slots: int):
        self.pool = pool
        self.page_slots = page_slots
        self._model = compatibility.model
        self._numeric_class = compatibility.numeric_class
        self._refused: tuple[Sequence, int, int] | None = None  # who, and at which revision

    def sequence(self, prefill: Prefill, now: float) -> Sequence:
        """A prompt as it arrives: nothing computed, no pages."""
        return Sequence(prefill, list(prefill.choices), list(prefill.token_ids), arrived=now)

    def refuse(self, prefill: Prefill, context_length: int, vocabulary: int) -> str:
        """Why this prompt can never be computed here; "" if it can."""
        length = len(prefill.token_ids)
        if length < 1 or not prefill.choices:
            return "the request has no tokens or no choices"
        if len(set(prefill.choices)) < len(prefill.choices):
            return "a choice is named twice"  # two sequences would be one holder of pages
        if length > context_length:
            return f"{length} tokens are more than this worker's context of {context_length}"
        if min(prefill.token_ids) < 0 or max(prefill.token_ids) >= vocabulary:
            return f"a token id lies outside the vocabulary of {vocabulary}"
        return ""

    def hash_full(self, sequence: Sequence) -> None:
        """Extend the sequence's hashes over all its full blocks."""
        known = len(sequence.hashes)
        parent = sequence.hashes[-1] if known else self._root(sequence)
        sequence.hashes += blockhash.extend(parent, sequence.token_ids, self.page_slots, known)

    def start(self, sequence: Sequence, tokens: int, headroom: int, use_cache: bool = True) -> bool:
        """Find cached blocks and take pages so that `tokens` positions have one; False = wait.

        At least the last token is computed, so that there are logits to draw from.
        """
        asked = (sequence, self.pool.revision, headroom)
        if asked == self._refused:
            return False  # nothing changed since the last time
        self.hash_full(sequence)
        limit = (len(sequence.token_ids) - 1) // self.page_slots if use_cache else 0
        found = self.pool.lookup(sequence.hashes[:limit])
        missing = -(-tokens // self.page_slots) - len(found)
        if not self.pool.can_take(missing + headroom, found):
            self._refused = asked
            return False
        self.pool.share(sequence.holder, found)  # first, so that taking cannot evict them
        taken = self.pool.take(sequence.holder, missing)
        assert taken is not None
        sequence.pages = found + taken
        sequence.sealed = len(found)
        sequence.computed = len(found) * self.page_slots
        sequence.cached_tokens = sequence.computed
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """One more page where the next token has no slot yet; False = none is free."""
        missing = sequence.pages_needed(tokens, self.page_slots)
        if missing == 0:
            return True
        taken = self.pool.take(sequence.holder, missing)
        if taken is None:
            return False
        sequence.pages += taken
        return True

    def computed(self, part: Slice) -> None:
        """A step wrote the slice's K and V: full pages are sealed and can be found."""
        sequence = part.sequence
        sequence.computed = part.start + part.count
        full = sequence.computed // self.page_slots
        if full > len(sequence.hashes):
            self.hash_full(sequence)
        fresh = slice(sequence.sealed, full)
        self.pool.seal_blocks(sequence.pages[fresh], sequence.hashes[fresh])
        sequence.sealed = max(sequence.sealed, full)

    def seal_tail(self, sequence: Sequence) -> None:
        """The prompt's partial block, if any, is written no more; no later prompt may find it."""
        if sequence.sealed == len(sequence.pages):
            return
        content = blockhash.tail(
            self._root(sequence), sequence.hashes, sequence.token_ids, self.page_slots
        )
        self.pool.seal(sequence.pages[sequence.sealed], None, content)
        sequence.sealed += 1

    def drop(self, sequence: Sequence) -> None:
        """The sequence leaves, or is to be computed again."""
        self.pool.release(sequence.holder)
        sequence.pages = []
        sequence.prompt_logprobs = []
        sequence.computed = sequence.sealed = 0

    def _root(self, sequence: Sequence) -> bytes:
        return blockhash.root(self._model, self._numeric_class, sequence.prefill.cache_salt)


def chunk(sequence: Sequence, budget: int) -> Slice:
    """The next part of a prompt; the one that reaches its end draws."""
    count = min(len(sequence.token_ids) - sequence.computed, budget)
    last = sequence.computed + count == len(sequence.token_ids)
    draw = tuple(sequence.choices) if last and sequence.sampling.max_tokens > 0 else ()
    return Slice(sequence, sequence.computed, count, draw)
