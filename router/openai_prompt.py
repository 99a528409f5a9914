"""Prompts to token ids. Pure of sockets and loops: long ones run in a worker thread.

A prompt is text, token ids, or messages that the model's chat template turns into text.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ..models.chat_template import ChatTemplateError
from ..models.text_stream import TextStream
from .openai_error import ApiError, quote
from .openai_facts import Facts
from .openai_sampling import in_vocabulary, too_long
from .schema import ChatBody, Message, TextBody, TokenizeBody

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 10_000
LONGEST_VARIABLE = 1000
# Longest prompt, in characters, tokenised on the loop: about a millisecond.
SHORT_PROMPT = 2000
# A message costs the template about as much as this many characters cost the tokenizer.
MESSAGE_CHARACTERS = 50


class Tokenizer(Protocol):
    """The part of models/tokenizer.py used here."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def stream(self, skip_special_tokens: bool = True) -> TextStream: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str: ...

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str: ...


class Prompt(msgspec.Struct, frozen=True):
    """One prompt, tokenised."""

    token_ids: list[int]
    text: str | None = None  # as the client sent it, if it sent text


ChatLike = ChatBody | TokenizeBody


def chat_size(body: ChatLike) -> int:
    """About how many characters must be tokenised."""
    messages = body.messages or []
    total = MESSAGE_CHARACTERS * len(messages)
    for message in messages:
        content = message.content
        if isinstance(content, str):
            total += len(content)
        elif content:
            total += sum(len(part.text or "") for part in content)
        if message.tool_calls:
            total += SHORT_PROMPT  # of unknown size: count it as long
    return total


def text_size(body: TextBody) -> int:
    if isinstance(body.prompt, str):
        return len(body.prompt)
    return sum(len(one) for one in body.prompt if isinstance(one, str))


def chat_prompt(body: ChatLike, tokenizer: Tokenizer, facts: Facts) -> Prompt:
    messages = _messages(body.messages or [])
    going_on = bool(body.continue_final_message)
    if going_on and body.add_generation_prompt:
        raise ApiError(
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    starting = not going_on if body.add_generation_prompt is None else body.add_generation_prompt
    variables = _variables(body, facts)
    try:
        text = tokenizer.render(
            messages,
            add_generation_prompt=starting,
            continue_final_message=going_on,
            **variables,
        )
    except ChatTemplateError as error:
        raise ApiError(str(error), "messages") from None
    _check_length(text, "messages", facts)
    return Prompt(tokenizer.encode(text, bool(body.add_special_tokens)), text)


def text_prompts(body: TextBody, tokenizer: Tokenizer, facts: Facts) -> list[Prompt]:
    special = body.add_special_tokens is not False
    if isinstance(body.prompt, str):
        return [_text_prompt(body.prompt, "prompt", tokenizer, special, facts)]
    given = body.prompt
    if not given:
        raise ApiError("prompt is an empty list; at least one prompt is needed", "prompt")
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise ApiError("prompt mixes strings, token ids and lists; send one kind", "prompt")
    if kinds == {int}:
        return [_ids_prompt(given, "prompt", facts)]
    return [
        _text_prompt(one, f"prompt[{index}]", tokenizer, special, facts)
        if isinstance(one, str)
        else _ids_prompt(one, f"prompt[{index}]", facts)
        for index, one in enumerate(given)
    ]


def _text_prompt(
    text: str, param: str, tokenizer: Tokenizer, special: bool, facts: Facts
) -> Prompt:
    _check_length(text, param, facts)
    token_ids = tokenizer.encode(text, special)
    if not token_ids:
        raise ApiError(f"{param} is empty; at least one token is needed", param)
    return Prompt(token_ids, text)


def _ids_prompt(token_ids: Any, param: str, facts: Facts) -> Prompt:
    if not token_ids:
        raise ApiError(f"{param} is empty; at least one token is needed", param)
    in_vocabulary(param, token_ids, facts)
    return Prompt(token_ids)


def _check_length(text: str, param: str, facts: Facts) -> None:
    """Refuse before tokenising what cannot fit however well it is tokenised."""
    if facts.longest_token:
        least = -(-len(text) // facts.longest_token)
        if least > facts.context_length:
            sentence = too_long(facts.context_length, f"at least {least}")
            raise ApiError(sentence, param, code="context_length_exceeded")


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages:
        raise ApiError("messages is empty; at least one message is needed", "messages")
    if len(messages) > MOST_MESSAGES:
        raise ApiError(f"messages may hold at most {MOST_MESSAGES}", "messages")
    return [_message(one, f"messages[{index}]") for index, one in enumerate(messages)]


def _message(message: Message, param: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise ApiError(
            f"{param}.role must be one of {', '.join(ROLES)}, not {quote(message.role)}",
            f"{param}.role",
        )
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise ApiError(f"{param}.content is missing; it is required", f"{param}.content")
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(message).items()
        if value is not None and name != "content"
    }
    if message.role == "developer":  # the newer name of system, which templates know
        fields["role"] = "system"
    fields["content"] = _content(message, f"{param}.content")
    return fields


def _content(message: Message, param: str) -> str:
    content = message.content
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type != "text":
            raise ApiError(
                f"{param}[{index}] is of type {quote(part.type)}; this model reads text only",
                f"{param}[{index}].type",
            )
        if part.text is None:
            raise ApiError(f"{param}[{index}].text is missing", f"{param}[{index}].text")
        texts.append(part.text)
    return "\n".join(texts)


def _variables(body: ChatLike, facts: Facts) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for name, value in (body.chat_template_kwargs or {}).items():
        param = f"chat_template_kwargs.{quote(name)}"
        if name not in facts.template_variables:
            known = ", ".join(sorted(facts.template_variables))
            raise ApiError(f"{param} may not be set; these may: {known}", param)
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ApiError(f"{param} must be text, a number, true, false or null", param)
        if isinstance(value, str) and len(value) > LONGEST_VARIABLE:
            raise ApiError(f"{param} is longer than {LONGEST_VARIABLE} characters", param)
        variables[name] = value
    if body.reasoning_effort is not None:
        effort = body.reasoning_effort
        if len(effort) > LONGEST_VARIABLE:
            raise ApiError("reasoning_effort is too long", "reasoning_effort")
        variables.setdefault("reasoning_effort", effort)
    return variables
