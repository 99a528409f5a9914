"""A body's numbers to Sampling: ranges, meanings, defaults. Pure.

Every refusal names its field and says what would work.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..protocol.messages import Sampling
from .openai_error import ApiError, quote
from .openai_facts import Facts, draw_seed
from .schema import ChatBody, Generation, TextBody

MOST_CHOICES = 128
MOST_SEQUENCES = 1024  # choices of all prompts of one request
MOST_LOGPROBS = 20
MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_BIASES = 1024
LONGEST_SALT = 1024
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
SEED_BITS = (1 << 63) - 1


class Stops(Struct, frozen=True):
    """What ends an answer besides its length, as far as the router looks at it."""

    strings: tuple[str, ...] = ()
    keep: bool = False  # the stop string stays in the text
    min_tokens: int = 0  # none is looked for in the first tokens


def sampling_of(body: Generation, facts: Facts) -> Sampling:
    """All but max_tokens, which depends on the prompt (`fit`)."""
    defaults = facts.defaults
    logprobs = _logprobs(body)
    prompt_logprobs = body.prompt_logprobs
    _within("prompt_logprobs", prompt_logprobs, 0, MOST_LOGPROBS)
    if prompt_logprobs is not None and body.stream:
        raise ApiError("prompt_logprobs is served without stream only", "prompt_logprobs")
    if prompt_logprobs is None:
        prompt_logprobs = logprobs if isinstance(body, TextBody) and body.echo else -1
    stop_ids = tuple(body.stop_token_ids or ())
    in_vocabulary("stop_token_ids", stop_ids, facts)
    if not body.ignore_eos:
        stop_ids = facts.eos_ids + tuple(one for one in stop_ids if one not in facts.eos_ids)
    return Sampling(
        seed=_seed(body.seed),
        temperature=_number("temperature", body.temperature, 0, 2, defaults.temperature),
        top_p=_top_p(body.top_p, defaults.top_p),
        top_k=_top_k(body.top_k, facts),
        min_p=_number("min_p", body.min_p, 0, 1, defaults.min_p),
        presence_penalty=_number("presence_penalty", body.presence_penalty, -2, 2, 0.0),
        frequency_penalty=_number("frequency_penalty", body.frequency_penalty, -2, 2, 0.0),
        repetition_penalty=_repetition(body.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_biases(body.logit_bias, facts),
        min_tokens=_min_tokens(body, facts),
        stop_token_ids=stop_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def fit(sampling: Sampling, body: Generation, prompt_tokens: int, facts: Facts) -> Sampling:
    """With max_tokens: what the client asked, or the default cut to what the context leaves."""
    context = facts.context_length
    field, asked = _asked_tokens(body)
    param = "messages" if isinstance(body, ChatBody) else "prompt"
    if prompt_tokens > context:
        raise ApiError(too_long(context, str(prompt_tokens)), param, code="context_length_exceeded")
    room = context - prompt_tokens
    if asked is None:
        if room == 0:
            sentence = too_long(context, str(prompt_tokens)) + " and no room is left for an answer"
            raise ApiError(sentence, param, code="context_length_exceeded")
        default = COMPLETION_TOKENS if param == "prompt" else facts.defaults.max_tokens or room
        asked = max(min(default, room), sampling.min_tokens)
    if asked > room:
        raise ApiError(
            f"{too_long(context, str(prompt_tokens))} and {field} asks for {asked} more; "
            f"at most {room} would fit",
            field,
            code="context_length_exceeded",
        )
    return replace(sampling, max_tokens=asked)


def too_long(context: int, prompt_tokens: str) -> str:
    return (
        f"This model's maximum context length is {context} tokens; "
        f"your prompt has {prompt_tokens} tokens"
    )


def choices_of(body: Generation) -> int:
    n = 1 if body.n is None else body.n
    _within("n", n, 1, MOST_CHOICES)
    if isinstance(body, TextBody) and body.best_of is not None and body.best_of != n:
        raise ApiError(f"best_of must equal n ({n}) here: every answer is sent", "best_of")
    return n


def stops_of(body: Generation) -> Stops:
    strings = () if body.stop is None else body.stop
    strings = (strings,) if isinstance(strings, str) else tuple(strings)
    if len(strings) > MOST_STOPS:
        raise ApiError(f"stop may hold at most {MOST_STOPS} strings, not {len(strings)}", "stop")
    for one in strings:
        if not one or len(one) > LONGEST_STOP:
            raise ApiError(f"each stop string needs 1 to {LONGEST_STOP} characters", "stop")
    return Stops(
        strings=tuple(dict.fromkeys(strings)),
        keep=bool(body.include_stop_str_in_output),
        min_tokens=body.min_tokens or 0,
    )


def salt_of(body: Generation) -> str:
    salt = body.cache_salt
    if salt is None:
        return ""
    if not 1 <= len(salt) <= LONGEST_SALT:
        raise ApiError(f"cache_salt needs 1 to {LONGEST_SALT} characters", "cache_salt")
    return salt


def priority_of(body: Generation) -> int:
    _within("priority", body.priority, -(1 << 31), (1 << 31) - 1)
    return body.priority or 0


def check_format(body: Generation) -> None:
    """Only plain text is served; what would promise more is refused."""
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text":
        raise ApiError(
            f"response_format {quote(str(kind))} is not served here, only text: no grammar "
            "holds the answer to a form",
            "response_format",
        )
    if isinstance(body, ChatBody):
        if body.tools and body.tool_choice != "none":
            raise ApiError(
                "tools are not served here: calls are not parsed out of answers; "
                'send tool_choice "none" or no tools',
                "tools",
            )
        if body.tool_choice not in (None, "none", "auto"):
            raise ApiError('tool_choice can only be "none" or "auto" here', "tool_choice")
        if body.modalities and body.modalities != ["text"]:
            raise ApiError('modalities can only be ["text"] here', "modalities")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options is for stream: true only", "stream_options")


def _asked_tokens(body: Generation) -> tuple[str, int | None]:
    """max_completion_tokens is the newer name and wins."""
    field, asked = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        field, asked = "max_completion_tokens", body.max_completion_tokens
    scored = body.prompt_logprobs is not None or (isinstance(body, TextBody) and body.echo)
    if asked is not None and asked < (0 if scored else 1):
        raise ApiError(f"{field} must be at least 1 (0 only to score a prompt with echo)", field)
    return field, asked


def _min_tokens(body: Generation, facts: Facts) -> int:
    least = body.min_tokens or 0
    field, asked = _asked_tokens(body)
    most = facts.context_length if asked is None else asked
    if not 0 <= least <= most:
        raise ApiError(f"min_tokens must be between 0 and {field} ({most})", "min_tokens")
    return least


def _logprobs(body: Generation) -> int:
    if isinstance(body, TextBody):
        _within("logprobs", body.logprobs, 0, MOST_LOGPROBS)
        return -1 if body.logprobs is None else body.logprobs
    assert isinstance(body, ChatBody)
    _within("top_logprobs", body.top_logprobs, 0, MOST_LOGPROBS)
    if not body.logprobs:
        if body.top_logprobs:
            raise ApiError("top_logprobs needs logprobs: true", "top_logprobs")
        return -1
    return body.top_logprobs or 0


def _seed(seed: int | None) -> int:
    if seed is None:
        return draw_seed()
    _within("seed", seed, -(1 << 63), (1 << 64) - 1)
    return seed & SEED_BITS


def _top_p(value: float | None, default: float) -> float:
    if value is not None and not 0 < value <= 1:
        raise ApiError("top_p must be above 0 and at most 1", "top_p")
    return default if value is None else value


def _top_k(value: int | None, facts: Facts) -> int:
    if value is None:
        return facts.defaults.top_k
    if value < -1:
        raise ApiError("top_k must be at least 1, or 0 or -1 for off", "top_k")
    return min(max(value, 0), facts.vocabulary)


def _repetition(value: float | None, default: float) -> float:
    if value is not None and not 0 < value <= 10:
        raise ApiError("repetition_penalty must be above 0 and at most 10", "repetition_penalty")
    return default if value is None else value


def _biases(biases: dict[int, float] | None, facts: Facts) -> dict[int, float]:
    if not biases:
        return {}
    if len(biases) > MOST_BIASES:
        raise ApiError(f"logit_bias may name at most {MOST_BIASES} tokens", "logit_bias")
    in_vocabulary("logit_bias", tuple(biases), facts)
    for token_id, bias in biases.items():
        _within(f"logit_bias[{token_id}]", bias, -100, 100)
    return biases


def in_vocabulary(field: str, token_ids: Sequence[int], facts: Facts) -> None:
    """The first id outside is named."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < facts.vocabulary):
        return
    bad = next(one for one in token_ids if not 0 <= one < facts.vocabulary)
    raise ApiError(
        f"{field}: token id {quote(str(bad))} is out of the vocabulary (0 to "
        f"{facts.vocabulary - 1})",
        field,
    )


def _number(field: str, value: float | None, low: float, high: float, default: float) -> float:
    if value is None:
        return default
    _within(field, value, low, high)
    return value


def _within(field: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ApiError(f"{field} must be between {low} and {high}, not {quote(str(value))}", field)
