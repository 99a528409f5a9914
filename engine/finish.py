"""When a choice ends. Pure; one definition for the first token (prefill) and all later ones."""

from ..protocol.messages import FinishReason
from .sequence import Sequence


def finish_reason(sequence: Sequence, token_id: int, context_length: int) -> FinishReason:
    """Asked with the token just drawn, before it is appended to `token_ids`.

    Stop ids cannot be drawn before min_tokens (the sampler masks them), so no count is needed.
    Stop strings are the router's: workers know no text.
    """
    if token_id in sequence.sampling.stop_token_ids:
        return "stop"
    return "length" if ends_by_length(sequence, len(sequence.token_ids) + 1, context_length) else ""


def ends_by_length(sequence: Sequence, length: int, context_length: int) -> bool:
    """Whether a sequence of so many tokens goes no further, whatever the last one is."""
    written = length - sequence.prompt_length
    return written >= sequence.sampling.max_tokens or length >= context_length
