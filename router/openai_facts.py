"""What the OpenAI surface must know about the model it stands before. Pure."""

import os
from dataclasses import dataclass

# Template variables a client may set; anything else could change what the template means.
TEMPLATE_VARIABLES = frozenset(
    {"enable_thinking", "thinking", "preserve_thinking", "reasoning_effort", "date_string"}
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """Where the client says nothing (a model's generation_config)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 0  # in chat; 0 = what the context leaves


@dataclass(frozen=True, slots=True)
class Facts:
    """The served model."""

    models: tuple[str, ...]  # names it answers to; the first is its own
    context_length: int  # prompt and answer together
    vocabulary: int  # ids below this may be sent
    eos_ids: tuple[int, ...]
    defaults: Defaults = Defaults()
    template_variables: frozenset[str] = TEMPLATE_VARIABLES
    created: int = 0  # seconds since 1970, for /v1/models
    longest_token: int = 0  # bytes; 0 = unknown, and then no prompt is refused untokenised


def draw_seed() -> int:
    """63 bits, so that it is positive in every signed 64-bit field on its way."""
    return int.from_bytes(os.urandom(8)) >> 1
