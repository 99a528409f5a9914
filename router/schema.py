"""The bodies clients may send, as types; ranges and meanings are checked in openai_*.py. Pure.

A field that is not named here is accepted and ignored, as at OpenAI (service_tier, metadata,
store, user, prediction, prompt_cache_key, safety_identifier, verbosity, ...). A field that would
change the answer and cannot be honoured is annotated with the sentence it is refused with.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from msgspec import Struct
from msgspec.json import Decoder

from .openai_error import ApiError
from .schema_errors import explain

Body = TypeVar("Body", bound=Struct)


@dataclass(frozen=True, slots=True)
class Unserved:
    """Why a field is refused. Null, false and empty values ask for nothing and pass."""

    sentence: str


Grammar = Annotated[
    Any, Unserved("is not served here: ask in the prompt for the form the answer shall have")
]
Internal = Annotated[Any, Unserved("passes between servers and is not taken from clients")]
Calls = Annotated[Any, Unserved("is not served here: calls are not parsed out of answers")]


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generation(Struct, kw_only=True):
    """What both ways of asking share. None means: not sent."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    cache_salt: str | None = None
    priority: int | None = None
    response_format: dict[str, Any] | None = None

    structured_outputs: Grammar = None
    structural_tag: Grammar = None
    guided_json: Grammar = None
    guided_regex: Grammar = None
    guided_choice: Grammar = None
    guided_grammar: Grammar = None
    guided_decoding_backend: Grammar = None
    guided_whitespace_pattern: Grammar = None
    json_schema: Grammar = None
    regex: Grammar = None
    ebnf: Grammar = None
    kv_transfer_params: Internal = None
    disaggregated_params: Internal = None
    bootstrap_host: Internal = None
    bootstrap_port: Internal = None
    bootstrap_room: Internal = None
    nvext: Internal = None
    bad_words: Annotated[Any, Unserved("is not served here; logit_bias -100 bars a token")] = None
    allowed_token_ids: Annotated[Any, Unserved("is not served here; see logit_bias")] = None
    logprob_token_ids: Annotated[Any, Unserved("is not served here; see top_logprobs")] = None
    use_beam_search: Annotated[Any, Unserved("is not served here; n draws several answers")] = None
    length_penalty: Annotated[Any, Unserved("is for beam search, which is not served here")] = None
    truncate_prompt_tokens: Annotated[
        Any, Unserved("is not served here: send the part of the prompt that shall be read")
    ] = None
    return_tokens_as_token_ids: Annotated[
        Any, Unserved("is not served here; return_token_ids adds the ids to the answer")
    ] = None
    thinking_token_budget: Annotated[
        Any, Unserved("is not served here; max_tokens bounds the whole answer")
    ] = None
    custom_logit_processor: Annotated[
        Any, Unserved("is not served here: no code is taken from requests")
    ] = None
    prompt_embeds: Annotated[
        Any, Unserved("is not served here: no tensors are taken from requests")
    ] = None


class Part(Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatBody(Generation, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    chat_template: Annotated[
        Any, Unserved("is not taken from requests; the model's own template is used")
    ] = None
    documents: Annotated[Any, Unserved("is not served here: put the documents into a message")] = (
        None
    )
    functions: Calls = None
    function_call: Calls = None
    audio: Annotated[Any, Unserved("is not served here: this model writes text")] = None
    echo: Annotated[Any, Unserved("is not served in chat; /v1/completions has it")] = None
    best_of: Annotated[Any, Unserved("is not served in chat; n draws several answers")] = None


class TextBody(Generation, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None

    suffix: Annotated[Any, Unserved("is not served here: text is only continued")] = None
    tools: Annotated[Any, Unserved("is not served here; see /v1/chat/completions")] = None


class TokenizeBody(Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages as the chat template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None
    chat_template: Annotated[
        Any, Unserved("is not taken from requests; the model's own template is used")
    ] = None


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class BodyType(Generic[Body]):
    """Decodes one kind of body and refuses what cannot be honoured."""

    def __init__(self, kind: type[Body]):
        self._decoder = Decoder(kind)
        self._unserved = _unserved_fields(kind)
        names = tuple(self._unserved)
        self._values: Callable[[Body], Any] = (
            operator.attrgetter(*names) if names else lambda body: ()
        )
        # One comparison in C where, as nearly always, none of these fields was sent.
        self._nothing: Any = (None,) * len(names) if len(names) != 1 else None

    def parse(self, data: bytes | bytearray) -> Body:
        try:
            data.decode()  # the decoder looks only at the strings it keeps
            body = self._decoder.decode(data)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise explain(error, data) from None
        if self._values(body) != self._nothing:
            self._refuse_unserved(body)
        return body

    def _refuse_unserved(self, body: Body) -> None:
        for name, sentence in self._unserved.items():
            value = getattr(body, name)
            if value is None or value is False or value in ("", [], {}):
                continue
            raise ApiError(f"{name} {sentence}", name)


def _unserved_fields(kind: type[Struct]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Unserved):
                found[name] = note.sentence
    return found


CHAT = BodyType(ChatBody)
TEXT = BodyType(TextBody)
TOKENIZE = BodyType(TokenizeBody)
DETOKENIZE = BodyType(DetokenizeBody)
