"""An answer written token by token, as server-sent events.

Nothing is sent before the first token: until then a failure still is an HTTP status. After it a
failure is an error event, and the stream ends without [DONE].
"""

from typing import Any

from ..protocol.messages import TokenLogprobs
from .answer import Answer, Part, Service
from .answer_logprobs import TextLogprobs, chat_entry
from .answer_text import ChoiceText
from .http_exchange import EVENT_STREAM, JSON, Exchange
from .openai_error import ApiError
from .openai_prompt import Tokenizer
from .sse import DONE, Events, Form, error_event, usage_event


class Line(Events):
    """One choice's events and, for completions, where its next token's text begins."""

    __slots__ = ("logprobs",)

    def __init__(self, form: Form, index: int, tokenizer: Tokenizer):
        super().__init__(form, index)
        self.logprobs = TextLogprobs(tokenizer)


class StreamedAnswer(Answer):
    __slots__ = ("_plain", "_headers")

    def __init__(self, exchange: Exchange, form: Form, service: Service, headers: bytes = b""):
        super().__init__(exchange, form, service)
        self._plain = form.plain
        self._headers = headers

    def token(
        self,
        part: Part,
        choice: ChoiceText,
        text: str,
        token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> None:
        line: Line = choice.written or self._begin(part, choice)
        if self._plain:
            if text:
                self.exchange.write(line.text(text))
        elif token_id >= 0:
            self._rich(line, text, token_id, logprobs)

    def _rich(self, line: Line, text: str, token_id: int, logprobs: TokenLogprobs | None) -> None:
        form = self.form
        extra: dict[str, Any] = {"token_ids": [token_id]} if form.token_ids else {}
        shown: Any = None
        if form.logprobs:
            if logprobs is None:
                return self.logprobs_missing()
            if form.chat:
                entry = chat_entry(self.service.tokenizer, token_id, logprobs)
                shown = {"content": [entry], "refusal": None}
            else:
                line.logprobs.add(token_id, logprobs)
                shown = line.logprobs.take()
        elif not text and not extra:  # only running usage was asked for: nothing to show
            return
        self.exchange.write(line.rich(text, shown, self._running_usage(), **extra))

    def _begin(self, part: Part, choice: ChoiceText) -> Line:
        """The first event of a choice: the role, or the prompt again."""
        form = self.form
        if self.exchange.status == 0:
            self.exchange.start_stream(EVENT_STREAM + self._headers)
        choice.written = line = Line(form, choice.index, self.service.tokenizer)
        token_ids = part.asked.token_ids if form.token_ids else None
        if form.chat:
            self.exchange.write(line.role(token_ids))
        elif form.echo or token_ids is not None:
            extra = {} if token_ids is None else {"prompt_token_ids": token_ids, "token_ids": []}
            text = self.prompt_text(part.asked) if form.echo else ""
            shown = self._prompt_logprobs(part, line) if form.echo and form.logprobs else None
            self.exchange.write(line.rich(text, shown, self._running_usage(), **extra))
        return line

    def _prompt_logprobs(self, part: Part, line: Line) -> dict[str, Any]:
        if part.report is not None:
            line.logprobs.add_prompt(part.asked.token_ids, part.report.prompt_logprobs)
        return line.logprobs.take()

    def _running_usage(self) -> dict[str, Any] | None:
        return self.usage() if self.form.running_usage else None

    def close_choice(self, choice: ChoiceText) -> None:
        line: Line = choice.written
        self.exchange.write(line.finish(choice.finish, choice.stop_reason, self._running_usage()))

    def close(self) -> None:
        usage = usage_event(self.form, self.usage()) if self.form.usage else b""
        self.exchange.end(usage + DONE)

    def close_failed(self, error: ApiError) -> None:
        if self.exchange.status == 0:
            self.exchange.respond(error.status, error.body(), JSON + self._headers)
        else:
            self.exchange.end(error_event(error.body()))
