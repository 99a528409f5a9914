"""A model's chat template: messages in, prompt text out, as Hugging Face renders it. Torch-free.

Templates come with the model and messages from anyone, so a template runs in jinja's immutable
sandbox, against a deadline and a bound on what it may produce.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Far above what honest templates need, far below what would hold a router up.
LONGEST_RENDER_SECONDS = 2.0
LONGEST_TEXT = 16 << 20  # characters

# What the final message is marked with to find where the model shall go on.
CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
# A message's reasoning goes by these names; templates read the first (or, gpt-oss, the second).
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

_deadline: ContextVar[float] = ContextVar("deadline")


class ChatTemplateError(Exception):
    """The template refused the messages, failed, or ran out of time; the text is for the client."""


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox plus limits: every look-up and call sees the deadline, `*` and `**` the size."""

    intercepted_binops = frozenset(("*", "**"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_deadline()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_deadline()
        return super().getitem(obj, argument)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_deadline()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and max(abs(left), abs(right)) > 1000:
            raise jinja2.TemplateRuntimeError("power out of bounds")
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, str | list | tuple) and len(sized) * times > LONGEST_TEXT:
                raise jinja2.TemplateRuntimeError("repetition out of bounds")
        return super().call_binop(context, operator, left, right)


def _check_deadline() -> None:
    if time.monotonic() > _deadline.get():
        raise jinja2.TemplateRuntimeError(f"took longer than {LONGEST_RENDER_SECONDS} s")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own filter this one does not escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """One compiled template and the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any] | None = None) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        try:
            self.compiled = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt text. Variables given here win over special tokens of the same name."""
        if not messages:
            raise ChatTemplateError("messages is empty; at least one message is needed")
        if continue_final_message and add_generation_prompt:
            raise ChatTemplateError(
                "continue_final_message and add_generation_prompt exclude each other"
            )
        chat = [_prepared(message) for message in messages]
        final = self._mark_final(chat[-1]) if continue_final_message else ""
        given = {
            **self.special_tokens,
            **variables,
            "messages": chat,
            "tools": copy.deepcopy(list(tools)) if tools is not None else None,
            "add_generation_prompt": add_generation_prompt,
        }
        given.setdefault("documents", None)
        text = self._run(given)
        return _cut_at_mark(text, final) if continue_final_message else text

    def _run(self, variables: dict[str, Any]) -> str:
        token = _deadline.set(time.monotonic() + LONGEST_RENDER_SECONDS)
        pieces: list[str] = []
        length = 0
        try:
            for piece in self.compiled.generate(variables):
                _check_deadline()
                length += len(piece)
                if length > LONGEST_TEXT:
                    raise jinja2.TemplateRuntimeError(f"more than {LONGEST_TEXT} characters")
                pieces.append(piece)
        except Exception as error:  # whatever a template does wrong is an answer, never a crash
            raise ChatTemplateError(f"chat template: {error}") from error
        finally:
            _deadline.reset(token)
        return "".join(pieces)

    def _mark_final(self, message: dict[str, Any]) -> str:
        """Append the mark to the last message's text; returns the text without it."""
        content = message.get("content")
        if isinstance(content, str) and "content" in self.source:
            message["content"] = content + CONTINUE_MARK
            return content
        for block in reversed(content if isinstance(content, list) else []):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text = block["text"]
                block["text"] = text + CONTINUE_MARK
                return text
        raise ChatTemplateError("continue_final_message: the final message has no text to continue")


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without null fields (templates would print "None") and with reasoning aliased."""
    if not isinstance(message, Mapping):
        raise ChatTemplateError("each message must be an object with a role and a content")
    fields = {name: copy.deepcopy(value) for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
    if reasoning is not None:
        fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
    return fields


def _cut_at_mark(text: str, final: str) -> str:
    """The rendered chat up to the end of the final message's text."""
    mark = CONTINUE_MARK.strip()
    if final.strip() not in text or mark not in text:
        raise ChatTemplateError(
            "continue_final_message: the chat template changes the final message, "
            "so that it cannot be continued"
        )
    at = text.rindex(mark)
    if text.startswith(CONTINUE_MARK, at):  # the template keeps spacing: cut exactly
        return text[:at]
    return text[:at].rstrip()
