"""One sequence as a worker sees it: its tokens, how many are computed, and its pages. Pure."""

from dataclasses import dataclass, field

from ..protocol.messages import Prefill, Sampling, TokenLogprobs


def has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or sampling.repetition_penalty != 1
    )


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one choice (or, before its first token is drawn, of all choices of a prompt).

        token_ids   [ 0 ........ prompt_length ........ len ]
        computed    [ 0 ....... computed )                     K and V of these are in `pages`
        pages[i]    holds positions i*slots .. (i+1)*slots-1

    The engine thread only reads it. While a step in flight writes its pages, the loop thread only
    adds to it: the token that the step before drew, a page for the step behind (flights.py).
    """

    prefill: Prefill
    choices: list[int]  # one after the first token, all of the prompt's before
    token_ids: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    sealed: int = 0  # pages[:sealed] are immutable; hashes has one entry per full block known
    hashes: list[bytes] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, not computed here
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of positions 1..
    arrived: float = 0.0
    started: float = -1.0
    cancelled: bool = False  # dropped when the step in flight ends

    @property
    def sampling(self) -> Sampling:
        return self.prefill.sampling

    @property
    def prompt_length(self) -> int:
        """The boundary between what the client sent and what was generated."""
        return self.prefill.prompt_length

    @property
    def remembers(self) -> bool:
        """Its next token's logits depend on all tokens before: each must be known in time."""
        return has_penalties(self.sampling)

    @property
    def holder(self) -> tuple[int, int, int]:
        """This sequence's name among the page pool's holders."""
        return (self.prefill.request, self.prefill.attempt, self.choices[0])

    def pages_needed(self, tokens: int, page_slots: int) -> int:
        """How many pages must be added so that `tokens` positions have a slot."""
        return max(0, -(-tokens // page_slots) - len(self.pages))
