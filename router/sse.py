"""Server-sent events of both APIs, byte by byte. Pure.

All that does not change from token to token is written once per choice; per token only the text
is turned into JSON and put between the two.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


class Form(msgspec.Struct, frozen=True):
    """How one client wants its answer."""

    id: str
    model: str
    created: int
    chat: bool
    stream: bool
    usage: bool = False  # stream_options.include_usage
    running_usage: bool = False  # stream_options.continuous_usage_stats
    logprobs: bool = False
    echo: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    skip_special_tokens: bool = True
    eos_ids: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """True where an event carries text and nothing else of its own."""
        return not (self.logprobs or self.token_ids or self.running_usage)

    def envelope(self) -> dict[str, Any]:
        """The fields every object of this answer begins with."""
        kind = "chat.completion" if self.chat else "text_completion"
        if self.chat and self.stream:
            kind = "chat.completion.chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def stop_reason(self, reason: str | int | None) -> str | int | None:
        """The model's own end is no reason of the client's."""
        return None if reason in self.eos_ids else reason


def event(fields: Any) -> bytes:
    return b"data: %b\n\n" % encode(fields)


class Events:
    """The events of one choice."""

    __slots__ = ("form", "index", "_open", "_close")

    def __init__(self, form: Form, index: int):
        self.form = form
        self.index = index
        head = encode(form.envelope())[:-1]  # without the brace
        usage = b',"usage":null' if form.usage else b""
        tail = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        if form.chat:
            content = b'"choices":[{"index":%d,"delta":{"content":' % index
            tail = b"}" + tail
        else:
            content = b'"choices":[{"index":%d,"text":' % index
        self._open = b"data: " + head + b"," + content
        self._close = tail

    def text(self, text: str) -> bytes:
        """The hot path: one token's text."""
        return b"".join((self._open, encode(text), self._close))

    def role(self, prompt_token_ids: Sequence[int] | None = None) -> bytes:
        """Chat's first event."""
        choice = self._choice({"role": "assistant", "content": ""})
        fields = self._whole(choice, None)
        if prompt_token_ids is not None:
            fields["prompt_token_ids"] = prompt_token_ids
        return event(fields)

    def rich(self, text: str, logprobs: Any, usage: dict[str, Any] | None, **extra: Any) -> bytes:
        """Text with what else was asked for."""
        choice = self._choice({"content": text} if self.form.chat else text)
        choice["logprobs"] = logprobs
        choice.update(extra)
        return event(self._whole(choice, usage))

    def finish(
        self, reason: str, stop_reason: str | int | None, usage: dict[str, Any] | None
    ) -> bytes:
        choice = self._choice({} if self.form.chat else "")
        choice["finish_reason"] = reason
        choice["stop_reason"] = self.form.stop_reason(stop_reason)
        return event(self._whole(choice, usage))

    def _choice(self, content: Any) -> dict[str, Any]:
        return {
            "index": self.index,
            "delta" if self.form.chat else "text": content,
            "logprobs": None,
            "finish_reason": None,
        }

    def _whole(self, choice: dict[str, Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        fields = self.form.envelope()
        fields["choices"] = [choice]
        if self.form.usage or self.form.running_usage:
            fields["usage"] = usage
        return fields


def usage_event(form: Form, usage: dict[str, Any]) -> bytes:
    return event(form.envelope() | {"choices": [], "usage": usage})


def error_event(envelope: bytes) -> bytes:
    return b"data: %b\n\n" % envelope
