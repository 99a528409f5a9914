"""An answer sent at once, when its last choice has ended."""

from typing import Any

import msgspec

from ..protocol.messages import TokenLogprobs
from .answer import Answer, Part, Service
from .answer_logprobs import TextLogprobs, chat_entry, prompt_entries
from .answer_text import ChoiceText
from .http_exchange import JSON, Exchange
from .openai_error import ApiError
from .sse import Form


class Gathered:
    """What one choice has said so far."""

    __slots__ = ("texts", "token_ids", "chat_logprobs", "text_logprobs")

    def __init__(self, logprobs: TextLogprobs):
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.chat_logprobs: list[dict[str, Any]] = []
        self.text_logprobs = logprobs


class WholeAnswer(Answer):
    __slots__ = ("_headers",)

    def __init__(self, exchange: Exchange, form: Form, service: Service, headers: bytes = b""):
        super().__init__(exchange, form, service)
        self._headers = headers

    def token(
        self,
        part: Part,
        choice: ChoiceText,
        text: str,
        token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> None:
        gathered: Gathered = choice.written or self._begin(part, choice)
        gathered.texts.append(text)
        if token_id < 0:
            return
        gathered.token_ids.append(token_id)
        if self.form.logprobs:
            if logprobs is None:
                self.logprobs_missing()
            elif self.form.chat:
                entry = chat_entry(self.service.tokenizer, token_id, logprobs)
                gathered.chat_logprobs.append(entry)
            else:
                gathered.text_logprobs.add(token_id, logprobs)

    def _begin(self, part: Part, choice: ChoiceText) -> Gathered:
        form = self.form
        choice.written = gathered = Gathered(TextLogprobs(self.service.tokenizer))
        if form.echo:
            gathered.texts.append(self.prompt_text(part.asked))
            if form.logprobs and part.report is not None:
                gathered.text_logprobs.add_prompt(part.asked.token_ids, part.report.prompt_logprobs)
        return gathered

    def close_choice(self, choice: ChoiceText) -> None:
        pass  # all of it goes out in close()

    def close(self) -> None:
        form = self.form
        fields = form.envelope()
        fields["choices"] = [
            self._choice_fields(part, choice) for part in self.parts for choice in part.choices
        ]
        fields["usage"] = self.usage()
        if form.chat:
            fields.update(self._prompt_fields(self.parts[0]))
        self.exchange.respond(200, msgspec.json.encode(fields), JSON + self._headers)

    def close_failed(self, error: ApiError) -> None:
        self.exchange.respond(error.status, error.body(), JSON + self._headers)

    def _choice_fields(self, part: Part, choice: ChoiceText) -> dict[str, Any]:
        form = self.form
        gathered: Gathered = choice.written
        text = "".join(gathered.texts)
        fields: dict[str, Any] = {"index": choice.index}
        if form.chat:
            fields["message"] = {"role": "assistant", "content": text, "refusal": None}
            content = {"content": gathered.chat_logprobs, "refusal": None}
            fields["logprobs"] = content if form.logprobs else None
        else:
            fields["text"] = text
            fields["logprobs"] = gathered.text_logprobs.take() if form.logprobs else None
            fields.update(self._prompt_fields(part))
        fields["finish_reason"] = choice.finish
        fields["stop_reason"] = form.stop_reason(choice.stop_reason)
        if form.token_ids:
            fields["token_ids"] = gathered.token_ids
        return fields

    def _prompt_fields(self, part: Part) -> dict[str, Any]:
        """Ids and log-probabilities of the prompt, where they were asked for."""
        fields: dict[str, Any] = {}
        token_ids = part.asked.token_ids
        if self.form.token_ids:
            fields["prompt_token_ids"] = token_ids
        if self.form.prompt_logprobs:
            reported = part.report.prompt_logprobs if part.report is not None else []
            fields["prompt_logprobs"] = prompt_entries(self.service.tokenizer, token_ids, reported)
        return fields
